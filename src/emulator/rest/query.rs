//! The parameters of a list, and the page that answers them.
//!
//! Owns names, in both spellings (the reference writes `PageSize`, the SDKs `pageSize`), their ranges, and
//! the envelope `{"<key>": [...], "meta": {...}}`. A parameter that is not known is not used, as at Twilio.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::super::pages::{self, Cursor, ListKey, Page};
use super::super::resource::Status;
use super::problem::Problem;
use super::{raw_json, render};

/// The parameters of a list.
pub(super) struct ListQuery {
    pub(super) size: usize,
    token: Option<String>,
    /// Empty: any.
    pub(super) statuses: BTreeSet<Status>,
    /// Empty: any.
    pub(super) channel_id: String,
    /// Empty: any.
    pub(super) memory_store_id: String,
}

impl ListQuery {
    /// What the query of a request says.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut parsed = ListQuery {
            size: pages::DEFAULT_PAGE_SIZE,
            token: None,
            statuses: BTreeSet::new(),
            channel_id: String::new(),
            memory_store_id: String::new(),
        };
        let pairs = url::form_urlencoded::parse(query.unwrap_or("").as_bytes());
        for (name, value) in pairs {
            match &*name {
                "pageSize" | "PageSize" => parsed.size = page_size(&value)?,
                "pageToken" | "PageToken" => parsed.token = Some(value.into_owned()),
                "channelId" | "ChannelId" => parsed.channel_id = value.into_owned(),
                "memoryStoreId" | "MemoryStoreId" => parsed.memory_store_id = value.into_owned(),
                "status" | "Status" => {
                    parsed.statuses.insert(status(&value)?);
                }
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// Where the page begins.
    pub(super) fn cursor(&self, key: ListKey) -> Result<Cursor, Problem> {
        match self.token.as_deref() {
            None | Some("") => Ok(Cursor::From(0)),
            Some(token) => {
                pages::decode(token, key).map_err(|error| Problem::bad_request(error.to_string()))
            }
        }
    }
}

fn page_size(value: &str) -> Result<usize, Problem> {
    match value.parse() {
        Ok(size) if (1..=pages::MAX_PAGE_SIZE).contains(&size) => Ok(size),
        _ => Err(Problem::bad_request(format!(
            "pageSize: is a number from 1 to {}",
            pages::MAX_PAGE_SIZE
        ))),
    }
}

fn status(value: &str) -> Result<Status, Problem> {
    match value {
        "ACTIVE" => Ok(Status::Active),
        "INACTIVE" => Ok(Status::Inactive),
        "CLOSED" => Ok(Status::Closed),
        _ => Err(Problem::bad_request(
            "status: is ACTIVE, INACTIVE or CLOSED",
        )),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    key: &'static str,
    page_size: usize,
    next_token: Option<String>,
    previous_token: Option<String>,
}

/// The answer with the page `page` of the list `name`.
pub(super) fn page_answer<T: Serialize>(
    name: &'static str,
    items: &[T],
    page: &Page,
    size: usize,
    key: ListKey,
) -> Response {
    let meta = Meta {
        key: name,
        page_size: size,
        next_token: page.next.map(|cursor| pages::encode(cursor, key)),
        previous_token: page.previous.map(|cursor| pages::encode(cursor, key)),
    };
    let mut out = format!("{{\"{name}\":").into_bytes();
    render(&items, &mut out);
    out.extend_from_slice(b",\"meta\":");
    render(&meta, &mut out);
    out.push(b'}');
    raw_json(StatusCode::OK, out)
}
