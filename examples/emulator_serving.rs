//! How many communications the emulator serves from memory in a second of one core.
//!
//! It plays its traffic on one thread and serves from the same one. A client on another thread then reads
//! every list of communications over one connection: first those of ordinary conversations, some twenty a
//! page, then those of one very large conversation, a thousand a page. What counts is the CPU time of the
//! serving thread, as Linux keeps it, so that a client on a slow machine does not matter.
//!
//!     cargo run --release --example emulator_serving
//!
//! Prints one line; fails below [`FLOOR`] a second in either case where the build is optimised.

#![expect(clippy::print_stdout, reason = "it is what the example is for")]

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, ensure};
use convolake::emulator::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, Options};
use convolake::lifecycle::{Clock, Stop};
use serde_json::Value;

/// Communications a second that a core has to serve.
const FLOOR: f64 = 20_000.0;
/// Conversations, the large one included.
const CONVERSATIONS: u64 = 2_000;
/// Communications of the large one.
const LARGE: usize = 50_000;

fn main() -> anyhow::Result<()> {
    let (started, emulator) = mpsc::channel();
    let stop = Stop::new();
    let until = stop.clone();
    let server = thread::spawn(move || serve(&started, until));
    let measured = emulator
        .recv()
        .context("the emulator did not start")
        .and_then(measure);
    stop.request();
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the emulator panicked"))??;
    let [ordinary, large] = measured?;
    println!(
        "emulator: {ordinary:.0} communications/s of ordinary conversations, {large:.0}/s of a large one, of one core's time"
    );
    let optimised = !cfg!(debug_assertions);
    ensure!(
        !optimised || ordinary.min(large) >= FLOOR,
        "below {FLOOR:.0} a second"
    );
    Ok(())
}

/// Where REST listens, and where Linux keeps the CPU time of the serving thread.
struct Served {
    address: SocketAddr,
    schedstat: String,
}

fn serve(started: &mpsc::Sender<Served>, stop: Stop) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let clock = Clock::system();
        let options = Options {
            conversations: CONVERSATIONS,
            large: Some(LARGE),
            ..Options::new(1, clock.now())
        };
        let emulator = Emulator::start(options, clock, stop)?;
        emulator.traffic_done().await;
        let thread = std::fs::read_link("/proc/thread-self").context("Linux alone tells")?;
        started.send(Served {
            address: emulator.address(),
            schedstat: format!("/proc/{}/schedstat", thread.display()),
        })?;
        Ok(emulator.finish().await?)
    })
}

/// Communications a second of CPU time: of all conversations but the first, and of the first.
fn measure(served: Served) -> anyhow::Result<[f64; 2]> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client {
            http: reqwest::Client::builder().no_proxy().build()?,
            served,
        };
        let conversations = client.list("/v2/Conversations", "conversations").await?;
        let ids: Vec<&str> = conversations
            .iter()
            .filter_map(|c| c["id"].as_str())
            .collect();
        let (large, ordinary) = client.largest_and_others(&ids).await?;
        Ok([client.rate(&ordinary).await?, client.rate(&[large]).await?])
    })
}

struct Client {
    http: reqwest::Client,
    served: Served,
}

impl Client {
    async fn largest_and_others<'a>(
        &self,
        ids: &[&'a str],
    ) -> anyhow::Result<(&'a str, Vec<&'a str>)> {
        let mut ids = ids.to_vec();
        for place in 0..ids.len() {
            let path = format!("/v2/Conversations/{}/Communications", ids[place]);
            let page = self.page(&path, "").await?;
            if page["meta"]["nextToken"].is_string() {
                return Ok((ids.swap_remove(place), ids));
            }
        }
        anyhow::bail!("no conversation is large")
    }

    async fn rate(&self, ids: &[&str]) -> anyhow::Result<f64> {
        let (before, mut count) = (self.cpu_seconds()?, 0);
        for id in ids {
            let path = format!("/v2/Conversations/{id}/Communications");
            count += self.list(&path, "communications").await?.len();
        }
        Ok(count as f64 / (self.cpu_seconds()? - before))
    }

    async fn list(&self, path: &str, key: &str) -> anyhow::Result<Vec<Value>> {
        let (mut items, mut token) = (Vec::new(), String::new());
        loop {
            let mut page = self.page(path, &token).await?;
            let found = page[key].as_array_mut().context("a page has its key")?;
            items.append(found);
            match page["meta"]["nextToken"].as_str() {
                Some(next) => next.clone_into(&mut token),
                None => return Ok(items),
            }
        }
    }

    async fn page(&self, path: &str, token: &str) -> anyhow::Result<Value> {
        let address = self.served.address;
        let url = format!("http://{address}{path}?pageSize=1000&pageToken={token}");
        let request = self
            .http
            .get(url)
            .basic_auth(DEV_ACCOUNT_SID, Some(DEV_AUTH_TOKEN));
        let answer = request.send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(&self.served.schedstat)?;
        let nanoseconds = text
            .split_whitespace()
            .next()
            .context("schedstat is empty")?;
        Ok(nanoseconds.parse::<f64>()? / 1e9)
    }
}
