//! Questions to the cluster, and the topics it must have.
//!
//! Owns the cluster's identity, the check that a topic can be written and read, and creating topics.
//! Refuses to change a topic that exists, whatever its partitions.
//!
//! Guarantees: every call is bounded by a time and runs off the runtime's threads, because librdkafka
//! blocks for an answer.

use std::ffi::CString;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::sleep;

use super::{Error, Quiet, Settings, Topics, notify};

/// Longest time for creating topics, until all brokers' metadata shows them.
const CREATE_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause between two looks at the metadata while a new topic spreads.
const CREATE_POLL: Duration = Duration::from_millis(100);

impl ConsumerContext for Quiet {}

/// The cluster's identity: positions in the lake are kept by it, because the offsets of another cluster
/// mean other records.
///
/// # Errors
/// [`Error::Unreachable`] after `timeout`; a wrong setting.
pub async fn cluster_id(settings: &Settings, timeout: Duration) -> Result<String, Error> {
    let config = settings.consumer(None)?;
    if let Some(cluster) = &settings.cluster {
        return Ok(cluster.clone());
    }
    let brokers = settings.brokers.clone();
    blocking(move || {
        let client: BaseConsumer<Quiet> = create(&config)?;
        client
            .client()
            .fetch_cluster_id(timeout)
            .ok_or_else(|| unreachable_error(&brokers, timeout, None))
    })
    .await
}

/// The identity of `topic`: another one after it was deleted and created anew, whose offsets mean other
/// records. Never negative; `None` where the brokers have none (before Kafka 2.8), and for the embedded cluster, which
/// answers no such question and is another cluster at every start.
///
/// # Errors
/// [`Error::Unreachable`], [`Error::UnknownTopic`], [`Error::NotAllowed`]; within `timeout`.
pub async fn topic_id(
    settings: &Settings,
    topic: &str,
    timeout: Duration,
) -> Result<Option<i64>, Error> {
    let config = settings.producer()?;
    if settings.cluster.is_some() {
        return Ok(None);
    }
    let (brokers, topic) = (settings.brokers.clone(), topic.to_owned());
    blocking(move || {
        let admin: AdminClient<Quiet> = create(&config)?;
        let deadline = Deadline::after(timeout);
        check_topic(admin.inner(), &brokers, &topic, deadline).or_else(|error| match error {
            // Its id is the same whoever leads it.
            Error::NoLeader { .. } => Ok(()),
            error => Err(error),
        })?;
        let name = CString::new(topic.as_str()).map_err(|_| Error::UnknownTopic {
            topic: topic.clone(),
        })?;
        match notify::topic_id(admin.inner(), &name, deadline.left()) {
            // The 62 bits of a random UUID that are its own; the sign is none of them.
            Ok(id) => Ok(id.map(|(most, least)| (most ^ least.rotate_left(32)) & i64::MAX)),
            Err(code) if not_allowed(code) => Err(Error::NotAllowed {
                doing: format!("describing topic {topic}"),
                source: code,
            }),
            Err(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                Err(Error::UnknownTopic { topic })
            }
            // Brokers that cannot describe a topic have no ids either.
            Err(RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::UnsupportedVersion) => {
                Ok(None)
            }
            Err(code) => Err(unreachable_error(
                &brokers,
                timeout,
                Some(KafkaError::AdminOp(code)),
            )),
        }
    })
    .await
}

/// Creates those of `topics` that do not exist, and waits until they can be written.
///
/// # Errors
/// [`Error::CreateTopic`], [`Error::NotAllowed`], [`Error::Unreachable`]; within 15 s.
pub async fn create_topics(
    settings: &Settings,
    topics: &Topics,
    partitions: i32,
    replication: i32,
) -> Result<(), Error> {
    let deadline = Deadline::after(CREATE_TIMEOUT);
    let config = settings.producer()?;
    let mut admin: AdminClient<Quiet> = create(&config)?;
    let mut missing = Vec::new();
    for topic in topics.all() {
        let (client, found) = look(admin, &settings.brokers, topic, deadline).await;
        admin = client;
        match found {
            Ok(()) | Err(Error::NoLeader { .. }) => {}
            Err(Error::UnknownTopic { .. }) => missing.push(topic),
            Err(error) => return Err(error),
        }
    }
    let wanted: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| NewTopic::new(topic, partitions, TopicReplication::Fixed(replication)))
        .collect();
    if !wanted.is_empty() {
        let options = AdminOptions::new()
            .request_timeout(Some(deadline.left()))
            .operation_timeout(Some(deadline.left()));
        let results = admin
            .create_topics(&wanted, &options)
            .await
            .map_err(|error| unreachable_error(&settings.brokers, CREATE_TIMEOUT, Some(error)))?;
        results.into_iter().try_for_each(created)?;
    }
    for topic in missing {
        loop {
            let (client, found) = look(admin, &settings.brokers, topic, deadline).await;
            admin = client;
            match found {
                Err(Error::UnknownTopic { .. } | Error::NoLeader { .. }) if !deadline.passed() => {
                    sleep(CREATE_POLL).await;
                }
                other => break other?,
            }
        }
    }
    // The client joins its threads.
    blocking(move || drop(admin)).await;
    Ok(())
}

fn created(result: Result<String, (String, RDKafkaErrorCode)>) -> Result<(), Error> {
    match result {
        Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(()),
        Err((topic, source)) if not_allowed(source) => Err(Error::NotAllowed {
            doing: format!("creating topic {topic}"),
            source,
        }),
        Err((topic, source)) => Err(Error::CreateTopic { topic, source }),
    }
}

/// Lends the client to a thread that may block.
async fn look(
    admin: AdminClient<Quiet>,
    brokers: &str,
    topic: &str,
    deadline: Deadline,
) -> (AdminClient<Quiet>, Result<(), Error>) {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    blocking(move || {
        let found = check_topic(admin.inner(), &brokers, &topic, deadline);
        (admin, found)
    })
    .await
}

/// Whether `topic` exists and every partition has a leader. Blocks until an answer or `deadline`.
pub(super) fn check_topic<C: ClientContext>(
    client: &Client<C>,
    brokers: &str,
    topic: &str,
    deadline: Deadline,
) -> Result<(), Error> {
    let metadata = client
        .fetch_metadata(Some(topic), deadline.left())
        .map_err(|error| unreachable_error(brokers, deadline.whole, Some(error)))?;
    let unknown = || Error::UnknownTopic {
        topic: topic.to_owned(),
    };
    let found = metadata
        .topics()
        .iter()
        .find(|t| t.name() == topic)
        .ok_or_else(unknown)?;
    if let Some(error) = found.error() {
        let code = RDKafkaErrorCode::from(error);
        return Err(if not_allowed(code) {
            Error::NotAllowed {
                doing: format!("reading the metadata of {topic}"),
                source: code,
            }
        } else {
            unknown()
        });
    }
    let leaderless = found.partitions().iter().filter(|p| p.leader() < 0).count();
    if found.partitions().is_empty() {
        Err(unknown())
    } else if leaderless > 0 {
        Err(Error::NoLeader {
            topic: topic.to_owned(),
            partitions: leaderless,
        })
    } else {
        Ok(())
    }
}

/// Whether the cluster refuses us, as opposed to what we ask for.
pub(super) fn not_allowed(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}

pub(super) fn unreachable_error(
    brokers: &str,
    waited: Duration,
    source: Option<KafkaError>,
) -> Error {
    Error::Unreachable {
        brokers: brokers.to_owned(),
        waited_ms: waited.as_millis(),
        source,
    }
}

fn create<T>(config: &ClientConfig) -> Result<T, Error>
where
    T: rdkafka::config::FromClientConfigAndContext<Quiet>,
{
    config
        .create_with_context(Quiet)
        .map_err(|error| Error::Client {
            reason: error.to_string(),
        })
}

/// A time that several waits share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Self {
        Deadline {
            end: Instant::now() + whole,
            whole,
        }
    }

    pub(super) fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    pub(super) fn passed(self) -> bool {
        self.left().is_zero()
    }
}

/// Runs what blocks off the runtime's threads; a panic in it goes on in the caller.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("nobody aborts this task: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::EmbeddedCluster;
    use crate::topic::testing::within;

    const SOON: Duration = Duration::from_millis(1_500);

    #[tokio::test]
    async fn the_cluster_has_an_identity_which_settings_replace() {
        let cluster = EmbeddedCluster::start(1, &["events"]).unwrap();
        let mut settings = cluster.settings();
        assert_eq!(
            cluster_id(&settings, SOON).await.unwrap(),
            cluster.cluster_id()
        );
        let another = EmbeddedCluster::start(1, &[]).unwrap();
        assert_ne!(cluster.cluster_id(), another.cluster_id());
        settings.cluster = None;
        let told = within(cluster_id(&settings, SOON)).await.unwrap();
        assert!(!told.is_empty());
        cluster.go_down();
        let error = within(cluster_id(&settings, SOON)).await.unwrap_err();
        assert!(matches!(&error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(cluster.brokers()), "{error}");
    }

    #[tokio::test]
    async fn the_embedded_cluster_has_no_topic_ids_and_what_is_not_there_is_named() {
        let cluster = EmbeddedCluster::start(1, &["events"]).unwrap();
        let mut settings = cluster.settings();
        assert_eq!(topic_id(&settings, "events", SOON).await.unwrap(), None);
        settings.cluster = None;
        let error = within(topic_id(&settings, "nothing", SOON))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::UnknownTopic { .. }), "{error}");
        cluster.go_down();
        let error = within(topic_id(&settings, "events", SOON))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }

    #[tokio::test]
    async fn topics_that_exist_are_left_alone() {
        let topics = Topics::named("events");
        let cluster = EmbeddedCluster::start(3, &topics.all()).unwrap();
        within(create_topics(&cluster.settings(), &topics, 1, 1))
            .await
            .unwrap();
    }
}
