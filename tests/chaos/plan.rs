//! The vocabulary of the matrix: a row is a value made of these, and nothing else decides what it does.
//!
//! Owns what can run, be sent, go wrong and be claimed. Refuses to do any of it: `rig` starts, `step` breaks,
//! `load` sends and `oracle` judges, each by matching on these values.

use std::time::Duration;

/// One row of the matrix.
#[derive(Debug)]
pub(crate) struct Row {
    /// As in the matrix: a letter for the place, a number.
    pub(crate) id: &'static str,
    /// Where it breaks.
    pub(crate) place: &'static str,
    /// What breaks, and how it is broken.
    pub(crate) fault: &'static str,
    /// What must hold, besides the four sets that every row keeps empty.
    pub(crate) must: &'static str,
    pub(crate) plan: Plan,
}

/// What a row does.
#[derive(Debug)]
pub(crate) enum Plan {
    Run(Case),
    /// Simulated, which no process can be: unit tests of these names do it.
    Tested(&'static [&'static str]),
    /// Run at its full size by integration tests of these names.
    Integration(&'static [&'static str]),
}

/// One experiment.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) stand: Stand,
    pub(crate) load: Load,
    /// Before anything runs but Kafka.
    pub(crate) before: &'static [Step],
    /// In this order, while the load goes on.
    pub(crate) steps: &'static [Step],
    /// What is claimed besides the sets.
    pub(crate) claims: &'static [Claim],
}

/// What runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    pub(crate) receivers: usize,
    pub(crate) receiver_flags: &'static [&'static str],
    pub(crate) receiver_under: Under,
    /// Where receivers keep what Kafka does not take; nowhere without.
    pub(crate) spool: Option<Medium>,
    pub(crate) workers: usize,
    pub(crate) worker_flags: &'static [&'static str],
    pub(crate) worker_under: Under,
    pub(crate) lake: Medium,
    /// The broker's own disk, where the row is about that; else it is shared with other rows.
    pub(crate) broker: Option<Medium>,
    pub(crate) broker_properties: &'static str,
    /// Whose connections go through the fault proxy.
    pub(crate) proxied: Option<Between>,
    /// Which callbacks are sent, and what the API says of their conversations.
    pub(crate) material: Material,
}

/// One receiver, nothing behind Kafka.
pub(crate) const EDGE: Stand = Stand {
    receivers: 1,
    receiver_flags: &[],
    receiver_under: Under::Nothing,
    spool: None,
    workers: 0,
    worker_flags: &[],
    worker_under: Under::Nothing,
    lake: Medium::Folder,
    broker: None,
    broker_properties: "",
    proxied: None,
    material: Material::Synthetic,
};

/// The same with a spool.
pub(crate) const SPOOLED: Stand = Stand {
    spool: Some(Medium::Folder),
    ..EDGE
};

/// From the callback to the lake, with two workers.
pub(crate) const WHOLE: Stand = Stand {
    workers: 2,
    material: Material::Played,
    ..EDGE
};

/// A place for files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// Wherever temporary files go.
    Folder,
    /// A file system in memory that is full at so many MiB.
    Memory(u32),
    /// An ext4 of so many MiB in an image, which can be copied as a power cut would leave it.
    Image(u32),
}

/// What stands between a process and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Under {
    Nothing,
    /// Our own library in front of the calls that change files, fsync and the wall clock.
    Preload,
    /// `prlimit --nofile` this.
    Files(u32),
    /// A memory limit of so many MiB.
    MemoryLimit(u32),
}

/// The two ends of the fault proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    ReceiversAndKafka,
    WorkersAndKafka,
    WorkersAndApi,
}

/// Callbacks, and the truth behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Material {
    /// Messages of conversations that never close, without end.
    Synthetic,
    /// What the emulator announced of conversations that it played to their end.
    Played,
    /// The same, but for the closes: nobody announced those.
    Unclosed,
}

/// How it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Callbacks a second; 0 sends none.
    pub(crate) rate: u32,
    /// Acknowledged callbacks before the row may end.
    pub(crate) least: Times,
    /// To each receiver instead of one of them.
    pub(crate) everywhere: bool,
}

/// The load of nearly all rows. Of its callbacks 30 % come again, and some are forged or carry another's
/// token, in every row.
pub(crate) const STEADY: Load = Load {
    rate: 200,
    least: Times {
        short: 400,
        release: 4_000,
    },
    everywhere: false,
};

/// A number for each of the two sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) short: u32,
    pub(crate) release: u32,
}

/// Shorthand: `times(short, release)`.
pub(crate) const fn times(short: u32, release: u32) -> Times {
    Times { short, release }
}

/// Who is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Receiver,
    Worker,
    Kafka,
}

/// One thing that happens. Ranges of milliseconds are drawn from, by the seed.
#[derive(Debug)]
pub(crate) enum Step {
    /// Waits until so many more callbacks were acknowledged, or so long, whichever is first.
    Sent(u32, Duration),
    /// Waits until so many more callbacks were acknowledged, of a number for each size.
    Backlog(Times),
    /// Waits until the spool is drained, within the limit, and says how fast that was and whom it slowed.
    Drained(Duration),
    /// Lets the load run for so long.
    During(Duration),
    /// Ends the load: everything that a conversation needs is acknowledged first.
    Quiet,
    /// Waits until everything acknowledged so far is in the lake.
    CaughtUp,
    /// Waits until a process has ended by itself.
    Ended(Who, Duration),
    Start(Who),
    /// kill -9 after progress and a drawn delay, then a new start; so often.
    Kill(Who, Times, (u64, u64)),
    /// kill -9, and down for so long.
    Down(Who, Duration),
    /// kill -9 without a new start.
    Gone(Who),
    /// A worker runs into its end right before a commit of the archive can be seen; so often.
    AtCommit(Then, Times),
    /// One of these series after the other, drawn by the seed, for so many seconds; who has ended is started again.
    Drawn(&'static [&'static [Step]], Times),
    /// Lives of the first of them, each killed at exactly its n-th call of a function that changes or syncs a file of
    /// its spool or lake; so many for each function, or all.
    KillEach(Who, Times),
    /// SIGTERM, its end, a new start; so often.
    Terminate(Who, Times),
    /// SIGSTOP for so long.
    Freeze(Who, Duration),
    /// What the fault proxy does from now on.
    Proxy(Toxic),
    /// The disk is copied as a power cut leaves it, so often, and each copy is recovered from at the end.
    PowerCut(Place, Times, (u64, u64)),
    /// No room is left there from now on.
    Fill(Place),
    /// There is room again.
    Free(Place),
    /// fsync fails with this errno, and takes so many ms longer, from now on.
    Sync(i32, i32),
    /// The wall clock of the processes is so many seconds ahead from now on.
    Clock(i64),
    /// The folder is gone.
    Remove(Place),
    /// This file of the spool is gone.
    RemoveFile(&'static str),
    /// So many connections that send one byte a second.
    Drip(u32),
    /// So many callbacks whose connection is reset after the body.
    Leave(u32),
    /// The group's offsets, which are hints, are set to this.
    Offsets(Offsets),
    /// So many records that are no callback are put into the topic.
    Poison(u32),
    /// So many events whose timestamps are centuries off are put into the topic.
    OddTimes(u32),
    /// All topics of the row are deleted and made again.
    RecreateTopic,
    /// Everything in the topic is deleted, as retention does.
    Retention,
    /// The topic of dead letters is deleted, and made again.
    DropDeadLetters,
    MakeDeadLetters,
    /// Receivers are started again with these signing keys; `{old}` is the account's.
    Keys(&'static str),
    /// No good callback has been forbidden so far.
    NoneForbidden,
    /// Waits until one has.
    Forbidden(Duration),
    /// The emulator takes this schedule of faults (a file of `deploy/faults/`), or none.
    Api(Option<&'static str>),
    /// Something happens to the files of the lake.
    Edit(Edit),
    /// `convolake` with these arguments ends with 0, or with 3 for having found something; `{lake}`, `{api}`,
    /// `{kafka}`, `{topic}` and `{ops}` are filled in.
    Command(&'static [&'static str]),
    /// `convolake maintain` with these flags, so often, each after another commit, with the wall clock that
    /// [`Step::Clock`] sets.
    Sweep(Times, &'static [&'static str]),
}

/// What happens to a worker between the last file that it wrote for a commit and the commit itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It stands still until another has archived everything that it held, and then goes on.
    Freeze,
    /// It is gone: at the first commit after its start, at the second, and so on in turn.
    Kill,
}

/// Which files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Spool,
    Lake,
    Broker,
}

/// A group's offsets in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offsets {
    Deleted,
    AtStart,
    AtEnd,
}

/// What the fault proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Toxic {
    /// Passes them on.
    Pass,
    /// After so many ms, each way.
    Latency(u64),
    /// So many bytes a second, each way.
    Bandwidth(u64),
    /// Requests pass, answers are thrown away.
    LoseReplies,
    /// This share of connections is reset at each chunk.
    Reset(f64),
    /// Nothing passes, nothing is closed.
    BlackHole,
    /// The server's end of the connection is closed towards the client, which may still send.
    HalfClose,
    /// New connections are refused at once, old ones are cut.
    Refuse,
}

/// What happens to a lake's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Temporary files of a killed writer.
    StrayFiles,
    /// Data and temporary files that nobody will commit, nine days old.
    Abandoned,
    /// delta-rs compacts every table.
    Compact,
    /// The newest data file of `communications` is deleted.
    DeleteData,
    /// The newest data file of `communications` is cut in half.
    CutData,
    /// The lake is emptied; no worker runs.
    Empty,
}

/// What is claimed of a run, besides the sets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Claim {
    /// Every answer came within the last, 99 % within the first. Reported, and decides nothing.
    Answers(Duration, Duration),
    /// From the end of the fault to the first 2xx. Reported, and decides nothing.
    FirstOk(Duration),
    /// The spool was drained at so many records a second. Reported, and decides nothing.
    Drains(u32),
    /// At least one callback was refused: the fault was felt, and nobody pretended otherwise.
    Refuses,
    /// So many dead letters.
    DeadLetters(u32),
    /// A process wrote this to standard error.
    Says(&'static str),
    /// A process ended by itself with this exit code.
    Exits(Who, i32),
    /// No process ended but by the row's own doing.
    Lives,
    /// `events` has at most so many days.
    Days(usize),
    /// At most the files of its largest commits are left by a kill, and none once they are swept.
    Orphans,
    /// What was abandoned was swept, and nothing else.
    Swept,
    /// Some rows differ from the truth in these columns, which is not held against them: the fault shows other values than
    /// are true.
    Except(&'static [&'static str]),
}
