//! The layer around `/v2` that acts: spoils answers as the script says.
//!
//! Owns how a fault looks on the wire. Refuses to decide whether one falls, and stands inside admission:
//! requests without credentials are neither counted nor spoiled. Every answer is dated by the emulator's
//! clock, which a `Retry-After` in the form of a date counts from.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, OriginalUri, Request, State};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::script::{Age, PageFault, RetryAfter};
use super::value::Whole;
use super::view::{self, View};
use super::wire::Link;
use super::{Asked, Look, RestFault};
use crate::emulator::Shared;
use crate::emulator::rest::Problem;

/// Carries a request out, with its fault where one falls.
pub(crate) async fn spoil(
    State(shared): State<Arc<Shared>>,
    OriginalUri(uri): OriginalUri,
    request: Request,
    next: Next,
) -> Response {
    let now = shared.clock.now();
    let mut answer = match shared.faults.is_quiet() {
        true => next.run(request).await,
        false => spoiled(&shared, uri.path(), request, next, now).await,
    };
    if let Ok(date) = HeaderValue::from_str(&http_date(now)) {
        answer.headers_mut().entry(header::DATE).or_insert(date);
    }
    answer
}

async fn spoiled(
    shared: &Shared,
    path: &str,
    request: Request,
    next: Next,
    now: Timestamp,
) -> Response {
    let asked = Asked {
        method: request.method().as_str(),
        path,
        now,
    };
    let decided = shared.faults.rest(asked);
    if let Some((fault, after_effect)) = &decided
        && fault.replaces()
    {
        let link = request.extensions().get::<ConnectInfo<Link>>();
        let link = link.map(|ConnectInfo(link)| link.clone());
        if *after_effect {
            next.run(request).await;
        }
        return instead(shared, fault, link, now).await;
    }
    let fault = decided.map(|(fault, _)| fault);
    let reads = request.method() == Method::GET;
    let scene = Scene::of(shared, path, &request, now, fault.as_ref());
    let again = reads.then(|| Again::of(&request, &next));
    let answer = match scene.view.gone {
        true => Problem::not_found("conversation").into_response(),
        false => next.run(request).await,
    };
    if !reads || answer.status() != StatusCode::OK {
        return answer;
    }
    let answer = shown(shared, scene, answer).await;
    match fault {
        Some(RestFault::Truncated { keep, framed }) => truncated(answer, keep.get(), framed).await,
        Some(RestFault::WrongTypes { fields }) => {
            let named = |name: &str| fields.iter().any(|field| field.as_str() == name);
            edited(answer, |body| view::mistype(body, &named)).await
        }
        Some(RestFault::Partial { fields }) => {
            let named = |name: &str| fields.iter().any(|field| field.as_str() == name);
            edited(answer, |body| view::leave_out(body, &named)).await
        }
        Some(RestFault::Page(kind)) => match again {
            Some(again) => misled(answer, kind, &again).await,
            None => answer,
        },
        _ => answer,
    }
}

/// Another answer than the request's own, or none.
async fn instead(
    shared: &Shared,
    fault: &RestFault,
    link: Option<Link>,
    now: Timestamp,
) -> Response {
    match fault {
        RestFault::Status { code, retry_after } => error(status(*code), retry_after.as_ref(), now),
        RestFault::Html { code } => html(status(*code)),
        RestFault::Redirect { code, to } => {
            let mut answer = status(*code).into_response();
            if let Ok(to) = HeaderValue::from_str(to.as_str()) {
                answer.headers_mut().insert(header::LOCATION, to);
            }
            answer
        }
        RestFault::Hang { seconds } => {
            let hang = tokio::time::sleep(Duration::from_secs(seconds.get()));
            // At a stop nobody is kept waiting.
            let _ = shared.stop.race(hang).await;
            reset(link)
        }
        _ => reset(link),
    }
}

fn reset(link: Option<Link>) -> Response {
    if let Some(link) = link {
        link.reset();
    }
    // Never written where the link is there: without one, a broken answer is the nearest.
    cut(Bytes::new(), 1)
}

impl RestFault {
    /// Whether there is another answer than the request's own.
    fn replaces(&self) -> bool {
        match self {
            RestFault::Status { .. }
            | RestFault::Hang { .. }
            | RestFault::Reset
            | RestFault::Html { .. }
            | RestFault::Redirect { .. } => true,
            RestFault::Truncated { .. }
            | RestFault::WrongTypes { .. }
            | RestFault::Partial { .. }
            | RestFault::Stale(_)
            | RestFault::Page(_) => false,
        }
    }
}

/// What a request is about, and what it sees of the conversation.
struct Scene {
    about: About,
    view: View,
    /// How old the answer is.
    age: Option<Age>,
    statuses: Vec<String>,
    now: Timestamp,
}

/// The parts of the API that show conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Conversations,
    Conversation,
    Items(&'static str),
    Item,
    Other,
}

impl Scene {
    fn of(
        shared: &Shared,
        path: &str,
        request: &Request,
        now: Timestamp,
        fault: Option<&RestFault>,
    ) -> Scene {
        let segments: Vec<&str> = path.split('/').skip(2).collect();
        let query = request.uri().query().unwrap_or("");
        let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
        let first_page = !pairs
            .iter()
            .any(|(name, token)| name.eq_ignore_ascii_case("pageToken") && !token.is_empty());
        let age = match fault {
            Some(RestFault::Stale(age)) => Some(*age),
            _ => None,
        };
        let (about, look) = match segments[..] {
            ["Conversations"] => (About::Conversations, None),
            ["Conversations", _] => (About::Conversation, Some(Look::Itself)),
            ["Conversations", _, "Communications"] if first_page => {
                (About::Items("communications"), Some(Look::FirstPage))
            }
            ["Conversations", _, "Communications"] => {
                (About::Items("communications"), Some(Look::Part))
            }
            ["Conversations", _, "Participants"] => {
                (About::Items("participants"), Some(Look::Part))
            }
            ["Conversations", _, _, _] => (About::Item, Some(Look::Part)),
            _ => (About::Other, None),
        };
        // A write sees whether the conversation is there, and reads nothing of it.
        let look = match *request.method() == Method::GET {
            true => look,
            false => look.map(|_| Look::Listed),
        };
        let mut view = View::default();
        if let Some((look, id)) = look.zip(segments.get(1)) {
            let state = shared.state();
            if let Some(entry) = state.conversation(id) {
                view = shared.faults.view(entry, look, now);
                if let Some(age) = age {
                    view.age(entry, age, now);
                }
                let item = segments.get(3).filter(|_| about == About::Item);
                view.gone |= item.is_some_and(|item| view.hidden.contains(*item));
            }
        }
        let statuses = pairs
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("status"));
        Scene {
            about,
            view,
            age,
            statuses: statuses
                .map(|(_, value)| value.clone().into_owned())
                .collect(),
            now,
        }
    }

    /// Shows what is to be seen.
    fn show(&self, shared: &Shared, answer: &mut Map<String, Value>) {
        match self.about {
            About::Conversations => {
                if let Some(Value::Array(items)) = answer.get_mut("conversations") {
                    items.retain_mut(|item| self.show_listed(shared, item));
                }
            }
            About::Conversation => self.view.show_conversation(answer),
            About::Items(key) => self.view.show_page(answer, key),
            About::Item => self.view.show_item(answer),
            About::Other => {}
        }
    }

    /// Shows a conversation of a list; false where it is not in it.
    fn show_listed(&self, shared: &Shared, item: &mut Value) -> bool {
        let Some(item) = item.as_object_mut() else {
            return true;
        };
        let state = shared.state();
        let id = item.get("id").and_then(Value::as_str);
        let Some(entry) = id.and_then(|id| state.conversation(id)) else {
            return true;
        };
        let mut view = shared.faults.view(entry, Look::Listed, self.now);
        if let Some(age) = self.age {
            view.age(entry, age, self.now);
        }
        view.show_conversation(item);
        let status = item.get("status").and_then(Value::as_str).unwrap_or("");
        let wanted = self.statuses.is_empty() || self.statuses.iter().any(|it| it == status);
        !view.gone && wanted
    }

    fn is_plain(&self) -> bool {
        self.view.is_whole() && self.about != About::Conversations
    }
}

/// The answer with what is to be seen of its conversations.
async fn shown(shared: &Shared, scene: Scene, answer: Response) -> Response {
    if scene.is_plain() {
        return answer;
    }
    edited(answer, |body| {
        if let Some(body) = body.as_object_mut() {
            scene.show(shared, body);
        }
    })
    .await
}

/// The answer with its JSON edited; byte for byte as it was where the edit changes nothing.
async fn edited(answer: Response, edit: impl FnOnce(&mut Value)) -> Response {
    let (mut parts, body) = answer.into_parts();
    let mut body = whole(body).await;
    if let Ok(was) = serde_json::from_slice::<Value>(&body) {
        let mut json = was.clone();
        edit(&mut json);
        if json != was {
            body = json.to_string().into();
        }
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(body))
}

/// The body of one of our own answers, which is in memory already, whole.
async fn whole(body: Body) -> Bytes {
    axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default()
}

/// A way to carry a GET out again, with another page token.
struct Again {
    parts: Parts,
    next: Next,
}

impl Again {
    fn of(request: &Request, next: &Next) -> Self {
        let mut copy = Request::new(());
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Again {
            parts: copy.into_parts().0,
            next: next.clone(),
        }
    }

    /// The request's own token.
    fn token(&self) -> Option<String> {
        let query = self.parts.uri.query().unwrap_or("");
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case("pageToken"))
            .map(|(_, token)| token.into_owned())
    }

    /// `meta` of the page with this token.
    async fn meta(&self, token: &str) -> Option<Map<String, Value>> {
        let mut request = Request::from_parts(self.parts.clone(), Body::empty());
        *request.uri_mut() = with_token(&self.parts.uri, token)?;
        let answer = self.next.clone().run(request).await;
        let body = whole(answer.into_body()).await;
        let mut page = serde_json::from_slice::<Map<String, Value>>(&body).ok()?;
        match page.remove("meta")? {
            Value::Object(meta) => Some(meta),
            _ => None,
        }
    }
}

fn with_token(uri: &Uri, token: &str) -> Option<Uri> {
    let pairs = url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes());
    let pairs = pairs.filter(|(name, _)| !name.eq_ignore_ascii_case("pageToken"));
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs).append_pair("pageToken", token);
    let target = format!("{}?{}", uri.path(), query.finish());
    PathAndQuery::try_from(target).map(Uri::from).ok()
}

/// The page with a `nextToken` that leads elsewhere.
async fn misled(answer: Response, kind: PageFault, again: &Again) -> Response {
    let (parts, body) = answer.into_parts();
    let body = whole(body).await;
    let wrong = match serde_json::from_slice::<Value>(&body) {
        Ok(page) => wrong_token(&page, kind, again).await,
        Err(_) => None,
    };
    let answer = Response::from_parts(parts, Body::from(body));
    let Some(token) = wrong else { return answer };
    edited(answer, |page| {
        if let Some(meta) = page.get_mut("meta").and_then(Value::as_object_mut) {
            meta.insert("nextToken".to_owned(), token);
        }
    })
    .await
}

/// Tokens are opaque, to this layer too: a wrong one is another page's right one.
async fn wrong_token(page: &Value, kind: PageFault, again: &Again) -> Option<Value> {
    let next = page.pointer("/meta/nextToken")?.as_str()?;
    let mut following = again.meta(next).await?;
    if kind == PageFault::Skip {
        return following.remove("nextToken");
    }
    // What lies before the next page is this one.
    let same = following.remove("previousToken")?;
    let repeated = same.as_str() == again.token().as_deref();
    (kind == PageFault::Loop || !repeated).then_some(same)
}

/// The answer with only a share of its body.
async fn truncated(answer: Response, keep: f64, framed: bool) -> Response {
    let (mut parts, body) = answer.into_parts();
    let mut body = whole(body).await;
    let length = body.len();
    body.truncate((length as f64 * keep) as usize);
    if framed {
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::from(body));
    }
    let mut answer = cut(body, length);
    *answer.status_mut() = parts.status;
    let length = answer.headers_mut().remove(header::CONTENT_LENGTH);
    *answer.headers_mut() = parts.headers;
    if let Some(length) = length {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    answer
}

/// An answer that announces `length` bytes, sends `start`, and breaks its connection.
fn cut(start: Bytes, length: usize) -> Response {
    let broken = || Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted));
    let chunks = futures::stream::unfold(Some(start), move |start| async move {
        match start {
            Some(start) => Some((Ok(start), None)),
            None => {
                // The server writes what it has whenever the body has to be waited for.
                tokio::task::yield_now().await;
                Some((broken(), None))
            }
        }
    });
    let mut answer = Body::from_stream(chunks).into_response();
    let length = HeaderValue::from(length);
    answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    answer
}

fn error(status: StatusCode, retry_after: Option<&RetryAfter>, now: Timestamp) -> Response {
    let message = status.canonical_reason().unwrap_or("Error").to_owned();
    let problem = Problem::new(status, 20_000 + u32::from(status.as_u16()), message);
    let mut answer = problem.into_response();
    let value = match retry_after {
        None => return answer,
        Some(RetryAfter::Seconds(seconds)) => seconds.to_string(),
        Some(RetryAfter::Date(seconds)) => {
            let later = jiff::SignedDuration::from_secs(i64::from(*seconds));
            http_date(now.saturating_add(later).unwrap_or(now))
        }
        Some(RetryAfter::Text(text)) => text.as_str().to_owned(),
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        answer.headers_mut().insert(header::RETRY_AFTER, value);
    }
    answer
}

fn html(status: StatusCode) -> Response {
    const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Service unavailable</title></head>\
                        <body><h1>Please try again</h1></body></html>\n";
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (status, kind, PAGE).into_response()
}

fn status<const MIN: u64, const MAX: u64>(code: Whole<MIN, MAX>) -> StatusCode {
    let code = u16::try_from(code.get()).ok();
    code.and_then(|code| StatusCode::from_u16(code).ok())
        .expect("the script's codes lie between 200 and 599")
}

/// As RFC 9110 writes dates: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
