//! The page at `/emulator/`: what is going on, for people, with forms to make more of it go on.
//!
//! Owns routes, the forms' fields and the headers that keep the page to itself. Refuses rules: a form is a
//! command as any other ([`Shared::carry_out`]). `view` has the HTML, `timeline` the order of what happened.
//!
//! Guarantees: rendered here, whole, without a script and with one style sheet inside, which is all that the
//! `Content-Security-Policy` lets in. Lists show [`timeline::PAGE_ITEMS`] items. A form that was carried out
//! leads to a page that can be loaded again without doing it twice. Forms of other sites' pages are refused
//! (403): a browser would send them without asking, and there are no credentials here.
//!
//! Fails with a page that says what was wrong, with the status that REST would answer.

mod timeline;
mod view;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::rejection::{FormRejection, PathRejection, QueryRejection};
use axum::extract::{Form, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::Markup;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use self::timeline::Window;
use self::view::{Frame, Front, One, STYLE};
use super::Shared;
use super::capture::CallType;
use super::configuration::{CaptureRule, without_nulls};
use super::resource::{Channel, ParticipantType, Status};
use super::rest::{self, NewCall, NewMessage, take_call, take_message, typed};
use super::state::ingest::Report;
use super::state::{Change, Command, Configurations, Entry, Refusal};

/// Shortest pause between two loads that somebody may ask for, in seconds.
const SHORTEST_REFRESH_S: u32 = 2;

/// Its routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    let forms = Router::new()
        .route("/emulator/forms/message", post(message))
        .route("/emulator/forms/call", post(call))
        .route("/emulator/forms/clock", post(advance))
        .route("/emulator/conversations/{id}/close", post(close))
        .layer(from_fn(own_forms_only));
    Router::new()
        .route("/emulator", get(async || Redirect::permanent("/emulator/")))
        .route("/emulator/", get(front))
        .route("/emulator/conversations/{id}", get(conversation))
        .merge(forms)
        .layer(from_fn(guarded))
}

/// Which conversations are shown, and how.
#[derive(Debug, Deserialize)]
struct Asked {
    status: Option<Status>,
    /// Position in the list of the item that comes after the last one shown.
    before: Option<usize>,
    refresh: Option<u32>,
    note: Option<Note>,
}

/// The conversations of a page of the list.
struct Listed<'a> {
    /// Oldest first.
    entries: Vec<&'a Arc<Entry>>,
    window: Window,
    status: Option<Status>,
}

async fn front(
    State(shared): State<Arc<Shared>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Answer {
    let Query(asked) = asked?;
    shared.catch_up().await;
    let counts = shared.counts();
    let state = shared.state();
    let takes = |entry: &Entry| {
        let status = entry.conversation.status;
        asked.status.is_none_or(|wanted| wanted == status)
    };
    let all = state.conversations().filter(|entry| takes(entry));
    let window = Window::ending(asked.before, all.count());
    let all = state.conversations().filter(|entry| takes(entry));
    let listed = Listed {
        entries: all
            .skip(window.first)
            .take(window.end - window.first)
            .collect(),
        window,
        status: asked.status,
    };
    let now = shared.clock.now();
    let content = view::front(&Front {
        counts,
        now,
        listed: &listed,
        configurations: state.configurations(),
        bill: state.bill(),
        forms: &Forms::of(state.configurations()),
        refreshes: asked.refresh.is_some(),
    });
    let frame = Frame {
        title: "Conversations",
        account: state.account_id(),
        note: asked.note,
        refresh: asked.refresh.map(|s| s.max(SHORTEST_REFRESH_S)),
    };
    Ok(page(StatusCode::OK, &frame.around(&content)))
}

/// Which part of a conversation's timeline is shown.
#[derive(Debug, Deserialize)]
struct AskedOfOne {
    before: Option<usize>,
    note: Option<Note>,
}

async fn conversation(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
    asked: Result<Query<AskedOfOne>, QueryRejection>,
) -> Answer {
    let (Path(id), Query(asked)) = (id?, asked?);
    shared.catch_up().await;
    let (account, entry) = {
        let state = shared.state();
        let entry = state.conversation(&id).map(Arc::clone);
        (state.account_id().to_owned(), entry)
    };
    let entry = entry.ok_or(Refusal::NotFound("conversation"))?;
    let deliveries = shared.outbox.log().of_conversation(&id);
    let all = timeline::of(&entry.communications, &deliveries);
    let window = Window::ending(asked.before, all.len());
    let content = view::conversation(&One {
        entry: &entry,
        window,
        happened: &all[window.first..window.end],
        forms: &Forms::of_conversation(&entry),
    });
    let frame = Frame {
        title: entry.conversation.name.as_deref().unwrap_or("Conversation"),
        account: &account,
        note: asked.note,
        refresh: None,
    };
    Ok(page(StatusCode::OK, &frame.around(&content)))
}

/// A message to be sent. Fields that were left empty are as good as none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageForm {
    channel: Channel,
    from: String,
    to: String,
    text: String,
    #[serde(default)]
    service_id: String,
    #[serde(default)]
    channel_id: String,
}

async fn message(
    State(shared): State<Arc<Shared>>,
    form: Result<Form<MessageForm>, FormRejection>,
) -> Answer {
    let Form(form) = form?;
    let new: NewMessage = typed(without_nulls(json!({
        "channel": form.channel,
        "from": form.from.trim(),
        "to": form.to.trim(),
        "text": as_written(&form.text),
        "serviceId": given(&form.service_id),
        "channelId": given(&form.channel_id),
    })))?;
    Ok(became(&take_message(&shared, new).await?))
}

/// A call to be placed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallForm {
    from: String,
    to: String,
    call_type: CallType,
    /// A line each.
    utterances: String,
    #[serde(default)]
    twiml: String,
}

async fn call(
    State(shared): State<Arc<Shared>>,
    form: Result<Form<CallForm>, FormRejection>,
) -> Answer {
    let Form(form) = form?;
    let lines = form.utterances.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty());
    let utterances = lines.enumerate().map(|(place, line)| {
        let by = match place % 2 {
            0 => ParticipantType::Customer,
            _ => ParticipantType::HumanAgent,
        };
        json!({"by": by, "text": line})
    });
    let new: NewCall = typed(without_nulls(json!({
        "from": form.from.trim(),
        "to": form.to.trim(),
        "callType": form.call_type,
        "utterances": utterances.collect::<Vec<_>>(),
        "twiml": given(&form.twiml),
    })))?;
    Ok(became(&take_call(&shared, new).await?))
}

/// Leads to where a message or call went.
fn became(report: &Report) -> Response {
    match report.captured.first() {
        Some(_) if report.double_billed => Note::DoubleBilled.on("/emulator/"),
        Some(captured) => Note::Captured.on_conversation(&captured.conversation_id),
        None => Note::NotCaptured.on("/emulator/"),
    }
}

fn given(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty()).then_some(text)
}

/// A browser ends the lines of a field in two characters, whatever was typed.
fn as_written(text: &str) -> String {
    text.replace("\r\n", "\n")
}

/// By how much the clock is to be advanced.
#[derive(Debug, Deserialize)]
struct ClockForm {
    amount: u64,
    /// Seconds.
    unit: u64,
}

async fn advance(
    State(shared): State<Arc<Shared>>,
    form: Result<Form<ClockForm>, FormRejection>,
) -> Answer {
    let Form(form) = form?;
    let seconds = form.amount.saturating_mul(form.unit);
    let advanced = shared.clock.advance(seconds);
    advanced.map_err(|error| Problem::bad_request(error.to_string()))?;
    shared.catch_up().await;
    Ok(Note::Advanced.on("/emulator/"))
}

async fn close(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
) -> Answer {
    let Path(id) = id?;
    let command = Command::Change {
        conversation: id.into(),
        change: Change {
            status: Some(Status::Closed),
            ..Change::default()
        },
    };
    let id = shared.carry_out(command, shared.clock.now()).await?;
    Ok(Note::Closed.on_conversation(&id))
}

/// What the forms begin with.
#[derive(Debug)]
struct Forms {
    channel: Channel,
    from: String,
    to: String,
    /// Of a classic chat.
    service_id: String,
    /// Of a classic chat.
    channel_id: String,
}

impl Forms {
    /// Somebody writes to a number that a configuration listens at.
    fn of(configurations: &Configurations) -> Self {
        const SOMEBODY: &str = "+15550000001";
        let rules = configurations.all().flat_map(|configuration| {
            let channels = configuration.settings.channel_settings.iter();
            channels.flat_map(|(channel, settings)| {
                let rules = settings.capture_rules.iter();
                rules.map(|rule| (*channel, rule))
            })
        });
        let inbound = |rule: &CaptureRule| &*rule.from == "*" && &*rule.to != "*";
        let mut inbound = rules.filter(|(_, rule)| inbound(rule));
        let (channel, to) = match inbound.next() {
            Some((channel, rule)) => (channel, rule.to.to_string()),
            None => (Channel::Sms, String::new()),
        };
        Forms {
            channel,
            from: SOMEBODY.to_owned(),
            to,
            service_id: String::new(),
            channel_id: String::new(),
        }
    }

    /// The customer writes once more.
    fn of_conversation(entry: &Entry) -> Self {
        let mut participants = entry.participants.iter();
        let customer = participants.find(|one| one.kind == ParticipantType::Customer);
        let written = |channel: &Channel| !matches!(channel, Channel::Voice | Channel::Video);
        let from = customer.and_then(|one| one.addresses.iter().find(|a| written(&a.channel)));
        let channel = from.map_or(Channel::Sms, |address| address.channel);
        let mut others = entry.participants.iter();
        let others = others
            .by_ref()
            .filter(|one| one.kind != ParticipantType::Customer);
        let mut addresses = others.flat_map(|one| &one.addresses);
        let to = addresses.find(|address| address.channel == channel);
        let bridge = entry
            .conversation
            .configuration
            .settings
            .conversations_v1_bridge
            .as_ref();
        let channel_id = from.and_then(|address| address.channel_id.as_deref());
        Forms {
            channel,
            from: from
                .map(|address| address.address.to_string())
                .unwrap_or_default(),
            to: to
                .map(|address| address.address.to_string())
                .unwrap_or_default(),
            service_id: bridge
                .map(|bridge| bridge.service_id.to_string())
                .unwrap_or_default(),
            channel_id: channel_id.unwrap_or_default().to_owned(),
        }
    }
}

/// What became of a form, said at the top of the page that it led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Note {
    Captured,
    DoubleBilled,
    NotCaptured,
    Advanced,
    Closed,
}

impl Note {
    const fn code(self) -> &'static str {
        match self {
            Note::Captured => "captured",
            Note::DoubleBilled => "double-billed",
            Note::NotCaptured => "not-captured",
            Note::Advanced => "advanced",
            Note::Closed => "closed",
        }
    }

    const fn is_good(self) -> bool {
        !matches!(self, Note::NotCaptured | Note::DoubleBilled)
    }

    const fn text(self) -> &'static str {
        match self {
            Note::Captured => "It was captured. Here is where it went.",
            Note::DoubleBilled => {
                "The call was recognised twice, by a capture rule and by its TwiML. It is twice on \
                 the bill, too."
            }
            Note::NotCaptured => {
                "Nothing was captured: no capture rule takes it, and no TwiML names a living \
                 conversation. The configurations below say what their rules take."
            }
            Note::Advanced => "The clock was advanced, and what was due has happened.",
            Note::Closed => "The conversation is closed. Nothing in it can change any more.",
        }
    }

    fn on(self, path: &str) -> Response {
        Redirect::to(&format!("{path}?note={}", self.code())).into_response()
    }

    fn on_conversation(self, id: &str) -> Response {
        self.on(&format!("/emulator/conversations/{id}"))
    }
}

type Answer = Result<Response, Problem>;

/// Why there is no such page, or why a form was not carried out.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    heading: &'static str,
    text: String,
}

impl Problem {
    fn bad_request(text: String) -> Self {
        Problem {
            status: StatusCode::BAD_REQUEST,
            heading: "That cannot be done",
            text,
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Problem::bad_request(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Problem::bad_request(rejection.body_text())
    }
}

impl From<FormRejection> for Problem {
    fn from(rejection: FormRejection) -> Self {
        Problem {
            status: rejection.status(),
            ..Problem::bad_request(rejection.body_text())
        }
    }
}

impl From<rest::Problem> for Problem {
    fn from(problem: rest::Problem) -> Self {
        Problem {
            status: problem.status,
            ..Problem::bad_request(problem.message)
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(_) => Problem {
                status: StatusCode::NOT_FOUND,
                heading: "There is nothing here",
                text: format!("{refusal}, or no longer: closed ones make room for newer ones."),
            },
            _ => Problem {
                status: StatusCode::CONFLICT,
                ..Problem::bad_request(refusal.to_string())
            },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let frame = Frame {
            title: self.heading,
            account: "",
            note: None,
            refresh: None,
        };
        let content = view::problem(self.heading, &self.text);
        page(self.status, &frame.around(&content))
    }
}

fn page(status: StatusCode, document: &Markup) -> Response {
    (status, Html(document.0.clone())).into_response()
}

/// Nothing but the page's own style, forms and empty icon; no script, no frame around it.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("base64 and these words are a header")
});

async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A browser says where a form comes from; what is no browser says nothing, and may send what it likes.
async fn own_forms_only(request: Request, next: Next) -> Response {
    match is_foreign(request.headers()) {
        false => next.run(request).await,
        true => Problem {
            status: StatusCode::FORBIDDEN,
            heading: "Not from there",
            text: "This form was sent by a page of another site.".to_owned(),
        }
        .into_response(),
    }
}

fn is_foreign(headers: &HeaderMap) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    if let Some(site) = headers.get(SITE) {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    origin.map(|(_, host)| host) != host
}
