//! The page for people, and its files.

use rust_embed::{Embed, EmbeddedFile};
use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::request::Asked;
use crate::http::error::ApiError;

#[derive(Embed)]
#[folder = "src/http/dashboard/"]
struct Files;

/// What the browser may do: load this server's own files and call it, and nothing else. No script or style stands in the
/// page, nobody may show it inside of theirs, and no text can become markup (Trusted Types).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// Kinds of files by how their names end. Others are not served.
const KINDS: [(&str, &str); 4] = [
    (".html", "text/html; charset=utf-8"),
    (".js", "text/javascript; charset=utf-8"),
    (".css", "text/css; charset=utf-8"),
    (".svg", "image/svg+xml"),
];

/// What every answer for people says, whoever wrote what it shows.
pub(super) const FOR_PEOPLE: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// The page.
pub(super) fn index(asked: &Asked) -> Result<Response, ApiError> {
    file(asked, "index.html")
}

/// One of its files.
pub(super) fn asset(asked: &Asked) -> Result<Response, ApiError> {
    file(asked, asked.after("/dashboard/"))
}

fn kind(name: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, kind)| kind)
}

fn file(asked: &Asked, name: &str) -> Result<Response, ApiError> {
    let (Some(EmbeddedFile { data, metadata }), Some(kind)) = (Files::get(name), kind(name)) else {
        return Err(ApiError::NoSuchRoute);
    };
    let tag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&metadata.sha256_hash()[..16]));
    let known = asked.header(header::IF_NONE_MATCH.as_str()).is_some_and(|tags| tags.contains(&tag));
    let mut response = if known { Response::default() } else { Response::new(data.into_owned().into()) };
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // Asked about each time, and sent only where it has changed: another version of Hydra may stand here tomorrow.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    for (name, value) in FOR_PEOPLE {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::ledger::{Account, Kind, Purpose};
    use crate::protocol::PublicKey;

    fn text(name: &str) -> String {
        String::from_utf8(Files::get(name).unwrap().data.into_owned()).unwrap()
    }

    fn is(name: &str, ending: &str) -> bool {
        name.rsplit_once('.').is_some_and(|(_, its)| its == ending)
    }

    fn served() -> Vec<String> {
        Files::iter().map(String::from).filter(|name| kind(name).is_some()).collect()
    }

    /// What stands between `before` and the next of `ends`, wherever it does.
    fn between<'a>(text: &'a str, before: &'a str, ends: &'a [char]) -> impl Iterator<Item = &'a str> {
        text.split(before).skip(1).filter_map(move |rest| rest.split(ends).next())
    }

    #[test]
    fn every_file_that_the_page_and_its_scripts_name_is_there() {
        let index = text("index.html");
        let named: Vec<&str> = ["src=\"", "href=\""]
            .into_iter()
            .flat_map(|before| between(&index, before, &['"']))
            // Other links of the page lead to its sections and to calls.
            .filter(|name| !name.starts_with('#') && !["openapi.json", "metrics"].contains(name))
            .collect();
        assert!(named.len() >= 4, "{named:?}");
        for name in named {
            let name = name.strip_prefix("dashboard/").unwrap_or_else(|| panic!("{name} lies elsewhere"));
            assert!(Files::get(name).is_some(), "the page names {name}, which is not there");
        }
        for script in served().iter().filter(|name| is(name, "js")) {
            let code = text(script);
            let folder = script.rsplit_once('/').map_or("", |(folder, _)| folder);
            let imports: Vec<&str> = ["from \"", "from\"", "import \"", "import(\""]
                .into_iter()
                .flat_map(|before| between(&code, before, &['"']))
                .filter(|name| name.starts_with('.') || name.starts_with('/'))
                .collect();
            for import in imports {
                let name = import.strip_prefix("./").unwrap_or_else(|| panic!("{script} imports {import}"));
                let name = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                assert!(Files::get(&name).is_some(), "{script} imports {name}, which is not there");
            }
        }
    }

    #[test]
    fn no_file_names_another_host_and_no_markup_holds_script_or_style() {
        for name in served() {
            let text = text(&name);
            for place in
                ["https:", "http:", "//"].into_iter().flat_map(|before| between(&text, before, &['"', '\'', ' ', '\n']))
            {
                // Names of XML vocabularies and of projects in comments are fetched by nobody.
                let fetched = is(&name, "css") || (is(&name, "html") && !place.is_empty());
                assert!(!fetched, "{name} names {place}");
            }
            for before in ["fetch(\"", "import(\"", "from \"", "EventSource(\"", "url("] {
                for place in between(&text, before, &['"', ')']) {
                    assert!(!place.contains("//"), "{name} fetches {place}");
                }
            }
            for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(sink), "{name} holds {sink}");
            }
        }
        let index = text("index.html");
        assert!(!index.contains("<style") && !index.contains(" style=") && !index.contains(" onclick="));
        assert!(
            index.matches("<script").count()
                == between(&index, "<script", &['>']).filter(|tag| tag.contains("src=")).count()
        );
    }

    #[test]
    fn what_others_wrote_comes_with_its_licence() {
        for library in Files::iter().filter(|name| name.starts_with("vendor/") && name.ends_with(".js")) {
            let licence = Files::get("vendor/LICENSES.txt").unwrap();
            let licence = String::from_utf8(licence.data.into_owned()).unwrap();
            let file = library.strip_prefix("vendor/").unwrap();
            assert!(licence.contains(file) && licence.contains("MIT"), "{file} has no licence");
        }
    }

    /// The names of each variant and of its fields, in the order of the wire: of what decodes from its number and zeros, or
    /// from its number and a key.
    fn variants<T: Serialize + DeserializeOwned>(key: Option<PublicKey>) -> Vec<Vec<String>> {
        let content = key.map_or(vec![0; 512], |key| key.as_bytes().to_vec());
        let values =
            (0..=u8::MAX).map_while(|number| postcard::from_bytes::<T>(&[&[number], &content[..]].concat()).ok());
        values.map(|value| names(&serde_json::to_string(&value).unwrap())).collect()
    }

    /// What is before a colon in this JSON, or the text that it is up to a colon.
    fn names(json: &str) -> Vec<String> {
        let parts: Vec<&str> = json.split('"').collect();
        let texts = parts.windows(2).skip(1).step_by(2);
        let keys: Vec<String> = texts.filter(|pair| pair[1].starts_with(':')).map(|pair| pair[0].to_owned()).collect();
        if keys.is_empty() { vec![parts[1].split(':').next().unwrap().to_owned()] } else { keys }
    }

    /// The texts in the rows of a table of the page's checker of proofs.
    fn table(name: &str) -> Vec<Vec<String>> {
        let script = text("proof.js");
        let table = script.split(&format!("const {name} = [")).nth(1).unwrap().split("];").next().unwrap();
        let texts = |row: &str| row.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        table.lines().map(texts).filter(|row| !row.is_empty()).collect()
    }

    #[test]
    fn the_page_knows_every_kind_purpose_and_account_of_the_ledger_in_the_order_of_the_wire() {
        assert_eq!(table("KINDS"), variants::<Kind>(None));
        assert_eq!(table("PURPOSES"), variants::<Purpose>(None));
        assert!(variants::<Purpose>(None).len() > 15);
        let accounts: Vec<String> =
            variants::<Account>(Some(crate::testing::key(1).public())).into_iter().flatten().collect();
        assert_eq!(table("ACCOUNTS"), [accounts]);
    }
}
