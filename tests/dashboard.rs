//! The page that `hydra up` and `hydra coordinator` serve: what it is sent with, what a stranger can do, and how it looks in
//! a browser.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Hydra;
use serde_json::Value;

/// `hydra up` at work, and where its page is.
struct Shown {
    hydra: Hydra,
    child: Child,
    address: String,
}

impl Shown {
    /// Trains until it is dropped, and answers queries.
    fn new(more: &[&str]) -> Self {
        let hydra = Hydra::new();
        let serving = ["up", "--serve", "--free-tokens", "100000", "--inner-steps", "40"];
        let mut command = hydra.command(&[&serving[..], more].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("http://") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "no address was printed");
        }
        // So that it can go on writing.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        assert!(line.trim_start().starts_with("page "), "{line}");
        let address = line.split("http://").nth(1).unwrap().trim().trim_end_matches('/').to_owned();
        let shown = Self { hydra, child, address };
        common::wait_for(|| TcpStream::connect(&shown.address).is_ok());
        shown
    }

    fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{headers}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> String {
        let found = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_default().to_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

#[test]
fn the_page_comes_with_a_strict_policy_and_is_asked_for_again_only_when_it_has_changed() {
    let shown = Shown::new(&[]);
    let page = shown.get("/");
    assert_eq!((page.status, page.header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    for part in
        ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
    let named = |before: &str| -> Vec<String> {
        page.body.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let mut files =
        [named("src=\""), named("href=\"dashboard/").iter().map(|name| format!("dashboard/{name}")).collect()].concat();
    files.dedup();
    for (file, kind) in files.iter().map(|file| {
        let kind = match file.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        (file, kind)
    }) {
        let answer = shown.get(&format!("/{file}"));
        assert_eq!((answer.status, answer.header("content-type").as_str()), (200, kind), "{file}");
        for (name, value) in [
            ("content-security-policy", policy.as_str()),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(answer.header(name), value, "{file}");
        }
        let tag = answer.header("etag");
        let again = shown.ask("GET", &format!("/{file}"), &format!("if-none-match: {tag}\r\n"));
        assert_eq!((again.status, again.body.as_str(), again.header("etag")), (304, "", tag), "{file}");
    }
    for nothing in [
        "/dashboard/nothing.js",
        "/dashboard/vendor/refresh",
        "/dashboard/vendor/LICENSES.txt",
        "/dashboard/..%2Fmod.rs",
        "/index.html",
    ] {
        let answer = shown.get(nothing);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &"no_such_route".into()), "{nothing}");
    }
}

#[test]
fn whoever_looks_at_a_run_of_one_computer_can_change_nothing_and_read_none_of_its_data() {
    let shown = Shown::new(&[]);
    let described = shown.get("/openapi.json").json();
    for (path, item) in described["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let keyless = &operation["security"];
            assert!(keyless.is_null() || keyless[0].get("api_key").is_some(), "{method} {path}");
        }
    }
    let digest = "0".repeat(64);
    for (method, path) in [
        ("POST", "/hydra/v1/lease".to_owned()),
        ("POST", "/hydra/v1/register".to_owned()),
        ("POST", "/hydra/v1/admin/finish".to_owned()),
        ("POST", "/hydra/v1/ledger/transfers".to_owned()),
        ("GET", format!("/hydra/v1/blobs/{digest}")),
        ("PUT", format!("/hydra/v1/blobs/{digest}?offset=0&length=1")),
    ] {
        let answer = shown.ask(method, &path, "");
        assert!([404, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
    }
    assert_eq!(shown.get("/hydra/v1/rounds/0").json()["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(shown.get("/hydra/v1/rounds/999999").json()["error"]["code"], "no_such_round");
    assert_eq!(shown.get("/hydra/v1/rounds/x").json()["error"]["code"], "malformed");
}

#[test]
fn reports_are_listed_and_shown_without_any_rights_and_nothing_else_is_read() {
    let kept = tempfile::tempdir().unwrap();
    for name in ["good", "half", "large"] {
        std::fs::create_dir(kept.path().join(name)).unwrap();
    }
    let good = kept.path().join("good");
    let played = serde_json::json!({
        "name": "baseline", "folder": "scenarios", "seed": 7, "until": null, "commit": "", "scenario": "0".repeat(64),
        "events": "0".repeat(64), "state_hash": "1".repeat(64), "failures": ["something"],
    });
    std::fs::write(good.join("run.json"), played.to_string()).unwrap();
    std::fs::write(good.join("metrics.csv"), "round,loss\n0,5.5\n1,\n2,3.25\n").unwrap();
    std::fs::write(good.join("report.html"), "<p>report").unwrap();
    std::fs::write(kept.path().join("secret"), "secret").unwrap();
    for name in ["run.json", "metrics.csv"] {
        std::fs::copy(good.join(name), kept.path().join("large").join(name)).unwrap();
    }
    std::fs::write(kept.path().join("large/report.html"), "x".repeat((4 << 20) + 1)).unwrap();
    // A whole report elsewhere, to which a link leads from here.
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["run.json", "metrics.csv", "report.html"] {
        std::fs::copy(good.join(name), elsewhere.path().join(name)).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(elsewhere.path(), kept.path().join("link")).unwrap();
    let shown = Shown::new(&["--reports", kept.path().to_str().unwrap()]);
    let mut reports = shown.get("/hydra/v1/reports").json();
    let large = reports["reports"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(large["name"], "large");
    let answer = shown.get("/hydra/v1/reports/large");
    let said = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(answer.status == 500 && said.contains("more than 4194304 bytes"), "half of it is not shown: {said}");
    let expected = serde_json::json!({ "reports": [{
        "name": "good", "scenario": "baseline", "seed": 7, "state_hash": "1".repeat(64), "failures": ["something"], "rounds": 3,
        "loss": 3.25,
    }]});
    assert_eq!(reports, expected);
    let report = shown.get("/hydra/v1/reports/good");
    assert_eq!((report.status, report.body.as_str()), (200, "<p>report"));
    let policy = report.header("content-security-policy");
    assert!(
        policy.contains("sandbox") && policy.contains("default-src 'none'") && !policy.contains("script"),
        "{policy}"
    );
    for nothing in ["half", "secret", "link", ".", "..", "..%2Fsecret", "good%2F..%2F..%2Fsecret"] {
        assert_eq!(shown.get(&format!("/hydra/v1/reports/{nothing}")).status, 404, "{nothing}");
    }
}

#[test]
fn a_run_is_the_same_with_and_without_a_page_and_no_page_opens_no_port() {
    let rounds = |more: &[&str]| Hydra::new().up_json(&[&["--rounds", "2"], more].concat());
    let (with, without, serving) = (rounds(&[]), rounds(&["--no-page"]), rounds(&["--serve"]));
    for what in ["run", "model_digest", "val_loss_last", "emitted", "transfers"] {
        assert_eq!(with[what], without[what], "{what}");
        assert_eq!(with[what], serving[what], "{what}");
    }
    let hydra = Hydra::new();
    let output = hydra.command(&["up", "--rounds", "1", "--no-page"]).output().unwrap();
    assert!(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("http"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let said = hydra.fails(&["up", "--rounds", "1", "--listen", &taken.local_addr().unwrap().to_string()], 1);
    assert!(said.contains("choose another --listen"), "{said}");
}

#[test]
fn a_browser_shows_a_run_as_it_goes_on_and_checks_the_ledger_itself() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let made = Command::new(scripts.join("make")).arg("--if-made").output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        println!("left out: there is no Chromium or no Playwright; tests/browser/make makes what is needed");
        return;
    };
    let python = String::from_utf8(made.stdout).unwrap();
    let shown = Shown::new(&["--audits"]);
    let mut look = Command::new(python.trim());
    look.arg(scripts.join("look.py")).arg(format!("http://{}", shown.address));
    if let Ok(pictures) = std::env::var("HYDRA_TEST_PICTURES") {
        look.arg(pictures);
    }
    let output = look.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success(), "{said}\n{}", shown.hydra.state().display());
}
