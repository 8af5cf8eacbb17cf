//! Reports of simulations that the operator shows.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use warp::http::{HeaderValue, header};
use warp::reply::Response;

use super::Site;
use super::page::FOR_PEOPLE;
use super::request::{Asked, json};
use crate::http::api::watch::{Report, Reports};
use crate::http::error::ApiError;
use crate::protocol::{Digest, limits};

/// Where a path names a report, counted from 0.
const NAME: usize = 3;

/// A report was written by a program that the operator ran, with styles and pictures inside; it is shown without any
/// rights.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; sandbox";

/// What is read of `run.json`.
#[derive(Deserialize)]
struct Played {
    name: String,
    seed: u64,
    state_hash: Digest,
    failures: Vec<String>,
}

pub(super) async fn list(site: &Site) -> Result<Response, ApiError> {
    let Some(shelf) = &site.reports else { return Ok(json(&Reports { reports: Vec::new() })) };
    let reports = shelf.look(|folder| reports(folder)).await?;
    Ok(json(&Reports { reports: reports.map_err(|error| ApiError::Internal(error.to_string()))? }))
}

pub(super) async fn show(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (shelf, name) = (site.reports.as_ref().ok_or(ApiError::NoSuchReport)?, asked.part::<String>(NAME)?);
    let found = shelf.look(move |folder| page(folder, &name)).await?;
    let found = found.map_err(|error| ApiError::Internal(format!("the report cannot be read: {error}")))?;
    let mut response = Response::new(found.ok_or(ApiError::NoSuchReport)?.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    for (name, value) in FOR_PEOPLE {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// The folders in `folder` that hold a whole report.
fn reports(folder: &Path) -> io::Result<Vec<Report>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort();
    let found = names.iter().filter(|name| is_plain(name)).filter_map(|name| report(&folder.join(name), name));
    Ok(found.take(limits::REPORTS_MAX).collect())
}

/// Whether this can be a report's name: one part of a path, with nothing in it that would have to be written another way.
fn is_plain(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    plain && !["", ".", ".."].contains(&name)
}

/// The page of the report `name`, if there is a whole one.
fn page(folder: &Path, name: &str) -> io::Result<Option<String>> {
    let folder = folder.join(name);
    // As in the list: what a link leads to was not put here.
    let is_here = is_plain(name) && fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir());
    if !is_here || report(&folder, name).is_none() {
        return Ok(None);
    }
    text(&folder.join("report.html")).map(Some)
}

fn report(folder: &Path, name: &str) -> Option<Report> {
    let played: Played = serde_json::from_str(&text(&folder.join("run.json")).ok()?).ok()?;
    is_file(&folder.join("report.html")).then_some(())?;
    let metrics = text(&folder.join("metrics.csv")).unwrap_or_default();
    let mut lines = metrics.lines();
    let column = lines.next()?.split(',').position(|name| name == "loss");
    let rows: Vec<&str> = lines.collect();
    let loss = rows.iter().rev().find_map(|row| row.split(',').nth(column?)?.parse::<f64>().ok());
    Some(Report {
        name: name.to_owned(),
        scenario: played.name,
        seed: played.seed,
        state_hash: played.state_hash,
        failures: played.failures,
        rounds: rows.len() as u64,
        loss: loss.filter(|loss| loss.is_finite()),
    })
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// The text of a file, whole.
fn text(path: &Path) -> io::Result<String> {
    let (mut text, most) = (String::new(), limits::REPORT_BYTES_MAX);
    if !is_file(path) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!("a file of it has more than {most} bytes")));
    }
    Ok(text)
}
