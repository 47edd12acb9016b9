//! The calls into librdkafka that rdkafka does not wrap, and the only `unsafe` of the crate.
//!
//! Owns the id of a topic ([`topic_id`]) and the wake-up of the task that serves a producer: librdkafka writes to a file descriptor when its
//! queue of events stops being empty, and the runtime that serves the connections sees it. A thread that
//! polls would cost a wake-up and two context switches for every acknowledgement.
//!
//! Guarantees: no wake-up is lost to those who poll until [`Wakeups::queued`] is 0, once before the first
//! wait and once after each. librdkafka signals only when its queue stops being empty, and not again
//! until it was polled.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka_sys as native;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes written for one wake-up: what an eventfd takes, and harmless to a socket.
const WAKE_UP: [u8; 8] = 1u64.to_ne_bytes();

/// Wake-ups of one producer's event queue.
pub(super) struct Wakeups<C: ProducerContext> {
    queue: *mut native::rd_kafka_queue_t,
    readable: AsyncFd<File>,
    /// The end librdkafka writes to, where it is not the same descriptor.
    _written: Option<File>,
    /// Keeps the client alive as long as its queue is used.
    producer: Arc<BaseProducer<C>>,
}

// SAFETY: `queue` is the only field that is not Send and Sync by itself. librdkafka's queues lock
// themselves: "thread-safe" holds for the whole API (rdkafka.h, introduction), and the pointer is
// freed once, in `drop`, when no other reference to this value exists.
unsafe impl<C: ProducerContext> Send for Wakeups<C> where BaseProducer<C>: Send + Sync {}
// SAFETY: as above; `&self` methods call only `rd_kafka_queue_length`.
unsafe impl<C: ProducerContext> Sync for Wakeups<C> where BaseProducer<C>: Send + Sync {}

impl<C: ProducerContext> Wakeups<C> {
    /// Asks librdkafka to signal events of `producer`; needs a tokio runtime with I/O.
    pub(super) fn enable(producer: Arc<BaseProducer<C>>) -> io::Result<Self> {
        let (readable, written) = signal()?;
        let target = written.as_ref().unwrap_or(&readable).as_raw_fd();
        // SAFETY: the file owns its descriptor, and nobody takes it out of the `AsyncFd` or replaces it.
        let readable = unsafe { AsyncFd::register_with_interest(readable, Interest::READABLE)? };
        // SAFETY: the client pointer is valid while `producer` lives, which this value holds. The call
        // adds a reference to the queue, given back in `drop`.
        let queue = unsafe { native::rd_kafka_queue_get_main(producer.client().native_ptr()) };
        // SAFETY: `queue` is valid (above). librdkafka copies the payload before it returns. `target`
        // stays open until after `drop` has switched the signal off.
        unsafe {
            native::rd_kafka_queue_io_event_enable(
                queue,
                target,
                WAKE_UP.as_ptr().cast(),
                WAKE_UP.len(),
            );
        }
        Ok(Wakeups {
            queue,
            readable,
            _written: written,
            producer,
        })
    }

    /// The producer whose events these are.
    pub(super) fn producer(&self) -> &Arc<BaseProducer<C>> {
        &self.producer
    }

    /// Ends when there may be events. Cancel-safe: a signal that was not read is still there.
    pub(super) async fn wait(&self) -> io::Result<()> {
        let mut ready = self.readable.readable().await?;
        let mut buffer = [0; 64];
        let read = ready.try_io(|file| file.get_ref().read(&mut buffer));
        match read {
            Ok(Err(error)) if error.kind() != ErrorKind::Interrupted => Err(error),
            // Would block: a spurious wake-up, for which polling once more is harmless.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// How many events wait.
    pub(super) fn queued(&self) -> usize {
        // SAFETY: `queue` is valid until `drop`.
        unsafe { native::rd_kafka_queue_length(self.queue) }
    }
}

impl<C: ProducerContext> Drop for Wakeups<C> {
    fn drop(&mut self) {
        // SAFETY: `queue` is valid and its client alive (`producer` is dropped after this). librdkafka
        // writes to the descriptor under the queue's lock, which the first call takes: after it nobody
        // writes any more, and the descriptors may close. The second gives our reference back, once.
        unsafe {
            native::rd_kafka_queue_io_event_enable(self.queue, -1, std::ptr::null(), 0);
            native::rd_kafka_queue_destroy(self.queue);
        }
    }
}

/// A descriptor to read wake-ups from, and the one to write them to where that is another.
#[cfg(target_os = "linux")]
fn signal() -> io::Result<(File, Option<File>)> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: no pointers are passed; the result is checked.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok((File::from(owned), None))
}

#[cfg(not(target_os = "linux"))]
fn signal() -> io::Result<(File, Option<File>)> {
    socket_signal()
}

/// Where there is no eventfd: a pair of sockets. A full buffer loses nothing, for a signal is in it.
#[cfg(any(test, not(target_os = "linux")))]
fn socket_signal() -> io::Result<(File, Option<File>)> {
    use std::os::fd::OwnedFd;
    let (read, write) = std::os::unix::net::UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    Ok((
        File::from(OwnedFd::from(read)),
        Some(File::from(OwnedFd::from(write))),
    ))
}

/// Lets a mock cluster hand out a new group's partitions at once instead of after 3 s.
pub(super) fn skip_group_delay<C: rdkafka::ClientContext>(client: &Client<C>) {
    // SAFETY: the client pointer is valid while `client` is borrowed; the mock cluster it answers with
    // lives as long as the client. Null (no mock cluster) is not passed on.
    unsafe {
        let cluster = native::rd_kafka_handle_mock_cluster(client.native_ptr());
        if !cluster.is_null() {
            native::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
    }
}

/// The id of `topic`: another one after it was deleted and created anew. `None`: the brokers give none (before
/// Kafka 2.8). Blocks until an answer, or `timeout`.
pub(super) fn topic_id<C: rdkafka::ClientContext>(
    client: &Client<C>,
    topic: &CStr,
    timeout: Duration,
) -> Result<Option<(i64, i64)>, RDKafkaErrorCode> {
    let wait_ms = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    let mut names = [topic.as_ptr()];
    // SAFETY: the client pointer is valid while `client` is borrowed. Every object made here is destroyed once, below,
    // after its last use; librdkafka copies the names and the options. No options are set that could be refused: the
    // answer is awaited in the queue, for `wait_ms`.
    unsafe {
        let native_client = client.native_ptr();
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let collection = native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        let options = native::rd_kafka_AdminOptions_new(native_client, operation);
        let queue = native::rd_kafka_queue_new(native_client);
        native::rd_kafka_DescribeTopics(native_client, collection, options, queue);
        let event = native::rd_kafka_queue_poll(queue, wait_ms);
        let id = if event.is_null() {
            Err(RDKafkaErrorCode::OperationTimedOut)
        } else {
            described_id(event)
        };
        if !event.is_null() {
            native::rd_kafka_event_destroy(event);
        }
        native::rd_kafka_queue_destroy(queue);
        native::rd_kafka_AdminOptions_destroy(options);
        native::rd_kafka_TopicCollection_destroy(collection);
        id
    }
}

/// The id in the answer to one described topic.
///
/// # Safety
/// `event` is valid, and stays so during the call.
unsafe fn described_id(
    event: *mut native::rd_kafka_event_t,
) -> Result<Option<(i64, i64)>, RDKafkaErrorCode> {
    use native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR as NO_ERROR;
    // SAFETY: what librdkafka answers with lives as long as the event. Null and an empty list are checked.
    unsafe {
        let code = native::rd_kafka_event_error(event);
        if code != NO_ERROR {
            return Err(code.into());
        }
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(RDKafkaErrorCode::Unknown);
        }
        let mut count = 0;
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if topics.is_null() || count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopic);
        }
        let topic = *topics;
        let error = native::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            let code = native::rd_kafka_error_code(error);
            if code != NO_ERROR {
                return Err(code.into());
            }
        }
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return Ok(None);
        }
        let halves = (
            native::rd_kafka_Uuid_most_significant_bits(id),
            native::rd_kafka_Uuid_least_significant_bits(id),
        );
        Ok((halves != (0, 0)).then_some(halves))
    }
}

/// Makes librdkafka raise a fatal error, as a sequence gap of the idempotent producer would.
#[cfg(test)]
pub(super) fn raise_fatal_error<C: rdkafka::ClientContext>(client: &Client<C>) {
    // SAFETY: the client pointer is valid while `client` is borrowed; the reason is a C string that
    // librdkafka copies.
    unsafe {
        native::rd_kafka_test_fatal_error(
            client.native_ptr(),
            native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            c"raised by a test".as_ptr(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn both_kinds_of_signal_carry_a_wake_up_and_never_block() {
        for (mut readable, written) in [signal().unwrap(), socket_signal().unwrap()] {
            let mut buffer = [0; 64];
            let empty = readable.read(&mut buffer).unwrap_err();
            assert_eq!(empty.kind(), ErrorKind::WouldBlock);
            let mut target = written.unwrap_or_else(|| readable.try_clone().unwrap());
            target.write_all(&WAKE_UP).unwrap();
            assert_eq!(readable.read(&mut buffer).unwrap(), WAKE_UP.len());
        }
    }
}
