//! Parts of all pages. A page is one HTML file without scripts and without external resources, for
//! light and dark screens and for paper.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// A whole page as HTML text. With `reload`, a browser loads it anew after this number of seconds,
/// and stays where it was scrolled to.
pub fn document(title: &str, reload: Option<u32>, body: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                @if let Some(seconds) = reload { meta http-equiv="refresh" content=(seconds); }
                title { (title) }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body { main { (body) } }
        }
    };
    // Names and texts may have control characters, which HTML cannot hold.
    page.into_string().replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "\u{fffd}")
}

/// A headline number with the lines below it, and a bar that is filled to `share`.
pub fn tile(name: &str, value: &str, share: Option<f64>, lines: &[String]) -> Markup {
    html! {
        div.tile {
            dt { (name) }
            dd.value { (value) }
            @if let Some(share) = share.filter(|share| share.is_finite()) { dd { (meter(share)) } }
            @for line in lines { dd { (line) } }
        }
    }
}

/// A bar that is filled to `share`.
pub fn meter(share: f64) -> Markup {
    html! {
        div.meter aria-hidden="true" {
            span style=(format!("width:{:.1}%", 100.0 * share.clamp(0.0, 1.0))) {}
        }
    }
}

/// A table that scrolls where it is wider than the page. `heads` are the columns' names, each after
/// its class; a table without a caption has an empty one.
pub fn table<'a>(
    class: &str,
    caption: &str,
    heads: impl IntoIterator<Item = (&'a str, &'a str)>,
    rows: Markup,
) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table class=[given(class)] {
                @if !caption.is_empty() { caption { (caption) } }
                thead { tr { @for (class, head) in heads { th class=[given(class)] scope="col" { (head) } } } }
                tbody { (rows) }
            }
        }
    }
}

fn given(class: &str) -> Option<&str> {
    (!class.is_empty()).then_some(class)
}

/// The section of settings with their values.
pub fn settings(rows: Vec<(Markup, Markup)>) -> Markup {
    html! {
        section {
            h2 { "Settings" }
            dl.settings {
                @for (name, value) in rows { div { dt { (name) } dd { (value) } } }
            }
        }
    }
}

/// The last part of a path or of a hub name.
pub fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches(['/', '\\']);
    trimmed.rsplit(['/', '\\']).next().filter(|part| !part.is_empty()).unwrap_or(path)
}
