//! Bounds of consuming; the consumer itself follows.

use std::time::Duration;
pub const REPLY_WAIT: Duration = Duration::from_secs(30);
pub const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
pub(super) struct Hold;
