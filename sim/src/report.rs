//! A run as a page that needs nothing but a browser.

use std::fmt::Write;

use crate::folder::Played;
use crate::{Outcome, Scenario, Struck};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.15em .8em .15em 0;text-align:right;font-variant-numeric:tabular-nums}td:first-child,th:first-child\
{text-align:left}.wide{overflow-x:auto}th{border-bottom:1px solid #999}svg{width:100%;height:auto}.bad{color:#b00020}.good{color:#00692b}\
code{font-size:.9em;overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}.bad{color:#ff7b7b}.good{color:#6fd08c}}";

/// The page.
pub(crate) fn report(played: &Played, scenario: &Scenario, outcome: &Outcome) -> String {
    let mut page = String::new();
    let verdict = if outcome.passed { "<p class=good>Everything expected holds.</p>" } else { "" };
    put(
        &mut page,
        format_args!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{name}</title><style>{STYLE}</style><h1>{name}</h1><p>{about}</p>{verdict}",
            name = escape(&played.name),
            about = escape(&scenario.about),
        ),
    );
    for failure in &outcome.failures {
        put(&mut page, format_args!("<p class=bad>FAILED: {}</p>", escape(failure)));
    }
    put(
        &mut page,
        format_args!(
            "<table><tr><td>seed<td>{}<tr><td>commit<td>{}<tr><td>virtual time<td>{:.1} s\
             <tr><td>events<td>{}<tr><td>rounds<td>{}<tr><td>faults<td>{}</table>\
             <p>state <code>{}</code><br>again: <code>{}</code></p>",
            outcome.seed,
            escape(&played.commit),
            outcome.virtual_seconds,
            outcome.events,
            outcome.rounds.len(),
            outcome.strikes.len(),
            outcome.state_hash,
            escape(&played.again),
        ),
    );
    let rows = &outcome.rounds;
    let loss = rows.iter().filter_map(|row| Some((row.closed_seconds, row.loss?))).collect();
    let accepted = rows.iter().map(|row| (row.closed_seconds, f64::from(row.accepted))).collect();
    let up = rows.iter().map(|row| (row.closed_seconds, row.workers_up as f64)).collect();
    let wrong = rows.iter().map(|row| (row.closed_seconds, (row.rejected + row.convicted) as f64)).collect();
    let charts: [(&str, Vec<(f64, f64)>); 4] = [
        ("Validation loss after each round, nats a token", loss),
        ("Accepted tasks of each round", accepted),
        ("Workers that ran when it closed", up),
        ("Results rejected or found false, from the beginning on", wrong),
    ];
    for (title, points) in charts {
        put(&mut page, format_args!("<h2>{title}</h2>{}", chart(&points, outcome.virtual_seconds, &outcome.strikes)));
    }
    if !outcome.strikes.is_empty() {
        page.push_str("<p>Shaded: something was wrong. Time runs in virtual seconds.</p>");
    }
    page.push_str(&groups(scenario, outcome));
    if let Some(queries) = &outcome.queries {
        put(
            &mut page,
            format_args!(
                "<h2>Queries</h2><table><tr><td>asked<td>{}<tr><td>answered<td>{}<tr><td>refused for want of tokens<td>{}\
                 <tr><td>given back<td>{}<tr><td>paid<td>{}</table>",
                queries.asked, queries.answered, queries.refused, queries.given_back, queries.paid,
            ),
        );
    }
    page.push_str("</html>\n");
    page
}

fn groups(scenario: &Scenario, outcome: &Outcome) -> String {
    let mut table = String::from(
        "<h2>Groups</h2><div class=wide><table><tr><th>group<th>workers<th>accepted<th>rejected<th>found false<th>paid, HYD\
         <th>kept, HYD<th>shut out",
    );
    for group in outcome.groups(scenario) {
        put(
            &mut table,
            format_args!(
                "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.2}<td>{:.2}<td>{}",
                escape(&group.name),
                group.workers,
                group.accepted,
                group.rejected,
                group.found_false,
                group.pay,
                group.kept,
                group.banned,
            ),
        );
    }
    table + "</table></div>"
}

/// A line through `points`, over bands for the times at which something was wrong.
fn chart(points: &[(f64, f64)], end: f64, strikes: &[Struck]) -> String {
    let top = points.iter().map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9) * 1.05;
    let x = |at: f64| LEFT + (WIDTH - LEFT) * (at / end.max(1e-9)).clamp(0.0, 1.0);
    let y = |value: f64| (HEIGHT - BOTTOM) * (1.0 - value / top);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img>");
    for strike in strikes {
        let (from, to) = (x(strike.at_seconds), x(strike.until_seconds));
        put(
            &mut svg,
            format_args!(
                "<rect x={from:.1} y=0 width={:.1} height={} fill=\"#d9822b\" opacity=.18><title>{:?} of {:?}</title></rect>",
                (to - from).max(1.0),
                HEIGHT - BOTTOM,
                strike.what,
                strike.who,
            ),
        );
    }
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (value, at) = (top * part, end * part);
        put(
            &mut svg,
            format_args!(
                "<line x1={LEFT} x2={WIDTH} y1={height:.1} y2={height:.1} stroke=\"#888\" stroke-width=.4 />\
                 <text x={label} y={text:.1} font-size=11 fill=\"#888\" text-anchor=end>{value:.3}</text>\
                 <text x={place:.1} y={below} font-size=11 fill=\"#888\" text-anchor=middle>{at:.0}</text>",
                height = y(value),
                label = LEFT - 6.0,
                text = (y(value) + 4.0).max(10.0),
                place = x(at).clamp(LEFT + 8.0, WIDTH - 24.0),
                below = HEIGHT - 8.0,
            ),
        );
    }
    let line: Vec<String> = points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
    put(
        &mut svg,
        format_args!("<polyline points=\"{}\" fill=none stroke=\"#2b6cb0\" stroke-width=2 />", line.join(" ")),
    );
    svg + "</svg>"
}

fn put(to: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string never fails.
    let _ = to.write_fmt(text);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
