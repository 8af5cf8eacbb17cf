use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::str::FromStr;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use warp::Filter;
use warp::http::{HeaderMap, Method, header};
use warp::reply::Response;

use super::{Front, Site};
use crate::http::auth::is_passed;
use crate::http::error::ApiError;
use crate::protocol::{Digest, PublicKey, limits};

/// The address at the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub IpAddr);

type Body = Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send>>;

/// A request whose body has not been read yet.
pub(super) struct Asked {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    peer: IpAddr,
    body: Body,
}

/// Takes a request apart.
pub(super) fn asked() -> impl Filter<Extract = (Asked,), Error = warp::Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .map(|method, path: warp::path::FullPath, query, headers, Peer(peer), body: _| Asked {
            method,
            path: path.as_str().to_owned(),
            query,
            headers,
            peer,
            body: boxed(body),
        })
}

fn boxed<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static) -> Body {
    Box::pin(body.map(|piece| piece.map(|mut piece| piece.copy_to_bytes(piece.remaining()))))
}

impl Asked {
    pub fn method(&self) -> &str {
        self.method.as_str()
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether a pass proves whose call it is, instead of a signature.
    pub fn is_passed(&self) -> bool {
        self.header(header::AUTHORIZATION.as_str()).is_some_and(is_passed)
    }

    /// Whose request it is, as far as an address tells.
    pub fn address(&self, behind_proxy: bool) -> IpAddr {
        let forwarded = self.header("x-forwarded-for").and_then(|all| all.rsplit(',').next()?.trim().parse().ok());
        forwarded.filter(|_| behind_proxy).unwrap_or(self.peer)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What follows this beginning of the path.
    pub fn after(&self, begin: &str) -> &str {
        self.path.strip_prefix(begin).unwrap_or_default()
    }

    /// The digest that the path ends with.
    pub fn digest(&self) -> Result<Digest, ApiError> {
        let last = self.path.rsplit('/').next().unwrap_or_default();
        last.parse().map_err(|error: crate::protocol::DigestError| ApiError::Malformed(error.to_string()))
    }

    /// A part of the path, counted from 0.
    pub fn part<T: FromStr<Err: fmt::Display>>(&self, place: usize) -> Result<T, ApiError> {
        let part = self.path.split('/').skip(1).nth(place).unwrap_or_default();
        part.parse().map_err(|error: T::Err| ApiError::Malformed(error.to_string()))
    }

    /// A number in the query.
    pub fn number(&self, name: &str) -> Result<u64, ApiError> {
        self.parameter(name)?.ok_or_else(|| ApiError::Malformed(format!("the query needs a number {name}")))
    }

    /// Something in the query that may be left out. (Signatures are over the query as it was sent.)
    pub fn parameter<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        parameter(&self.query, name)
    }

    /// How many things of a page are asked for: `usual` where nobody says, `limit` at most.
    pub fn most(&self, usual: usize, limit: usize) -> Result<usize, ApiError> {
        Ok(self.parameter("most")?.unwrap_or(usual).clamp(1, limit))
    }

    /// Whether there is a signature at all.
    pub fn is_signed(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }

    /// Checks the signature and reads the body: who calls, and what they sent. Nothing is read of a body whose caller
    /// is not known.
    pub async fn signed(&mut self, site: &Front, limit: usize) -> Result<(PublicKey, Bytes), ApiError> {
        let path = if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) };
        let now = site.clock.now();
        let header = self.header(header::AUTHORIZATION.as_str());
        let claim = site.gate.claim(header, self.method.as_str(), &path, now)?;
        // Servers of queries make two calls for each. Whoever only says to be one is bounded by their address.
        if !site.config.query_servers.contains(&claim.caller()) {
            site.per_key.take(claim.caller(), now).map_err(ApiError::TooManyCalls)?;
        }
        let body = tokio::time::timeout(limits::HTTP_BODY_WITHIN, self.body(limit)).await;
        let body = body.map_err(|_| ApiError::TooSlow)??;
        site.hub.received.inc_by(body.len() as u64);
        Ok((site.gate.admit(&claim, &body, site.clock.now())?, body))
    }

    /// Reads the body of a call that is not signed. Of one that is too large the rest is read and thrown away, up to as
    /// much again several times: most clients listen only when they have sent all.
    pub async fn unsigned(&mut self, site: &Front, limit: usize) -> Result<Bytes, ApiError> {
        let reading = async {
            let body = self.body(limit).await;
            let mut thrown = 0;
            while matches!(body, Err(ApiError::TooLarge { .. }))
                && thrown < limit * 4
                && let Some(Ok(piece)) = self.body.next().await
            {
                thrown += piece.len();
            }
            body
        };
        let body = tokio::time::timeout(limits::HTTP_BODY_WITHIN, reading).await;
        let body = body.map_err(|_| ApiError::TooSlow)??;
        site.hub.received.inc_by(body.len() as u64);
        Ok(body)
    }

    /// The same, for keys that may take part.
    pub async fn admitted(&mut self, site: &Site, limit: usize) -> Result<(PublicKey, Bytes), ApiError> {
        let (caller, body) = self.signed(site, limit).await?;
        site.admitted(&caller)?;
        Ok((caller, body))
    }

    async fn body(&mut self, limit: usize) -> Result<Bytes, ApiError> {
        let announced = self.header("content-length").and_then(|length| length.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(ApiError::TooLarge { limit });
        }
        let mut whole = BytesMut::new();
        while let Some(piece) = self.body.next().await {
            let piece = piece.map_err(|error| ApiError::Malformed(error.to_string()))?;
            if whole.len() + piece.len() > limit {
                return Err(ApiError::TooLarge { limit });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

fn parameter<T: FromStr<Err: fmt::Display>>(query: &str, name: &str) -> Result<Option<T>, ApiError> {
    let value = form_urlencoded::parse(query.as_bytes()).find(|(known, _)| known == name);
    let wrong = |error: T::Err| ApiError::Malformed(format!("{name} in the query: {error}"));
    value.map(|(_, value)| value.parse()).transpose().map_err(wrong)
}

/// Reads a body of JSON.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Malformed(error.to_string()))
}

/// What comes after a page that may have had so many things: the name of its last one, or nothing where it was not full.
pub(super) fn next<T, N>(page: &[T], most: usize, name: impl Fn(&T) -> N) -> Option<N> {
    page.last().filter(|_| page.len() >= most).map(name)
}

/// Answers with JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = Response::new(body.into());
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => ApiError::Internal(error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Account;

    #[test]
    fn a_parameter_may_be_written_with_escapes() {
        let key = crate::testing::key(1).public();
        let account = |query: &str| parameter::<Account>(query, "after");
        for query in
            [format!("after=wallet:{key}"), format!("most=3&after=wallet%3A{key}"), format!("after=wallet%3a{key}")]
        {
            assert_eq!(account(&query), Ok(Some(Account::Wallet(key))), "{query}");
        }
        assert_eq!(account("most=3&hereafter=1"), Ok(None));
        assert_eq!(parameter("m%6fst=%33", "most"), Ok(Some(3)));
        for wrong in ["after=wallet%3", "after=%FF", "after="] {
            assert!(matches!(account(wrong), Err(ApiError::Malformed(_))), "{wrong}");
        }
    }
}
