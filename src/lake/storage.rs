//! The object store and the threads under it, shared by the tables of one lake.
//!
//! Owns a small runtime of its own: the kernel's engine drives its I/O on a multi-thread runtime and waits for it from
//! blocking threads, so it works whatever runtime the caller has, and a slow disk takes no thread of the edge's.
//! The store fsyncs files and folders (object_store `LocalFileSystem::with_fsync`, off by default).

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use delta_kernel_default_engine::executor::tokio::TokioMultiThreadExecutor;
use delta_kernel_default_engine::{DefaultEngine, DefaultEngineBuilder};
use object_store::local::LocalFileSystem;
use object_store::{DynObjectStore, ObjectStore};
use tokio::runtime::Runtime;

use super::LakeError;
#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};

/// Threads that drive the store's I/O. Files are read and written by blocking threads beside them.
const IO_THREADS: usize = 2;

pub(super) type Engine = DefaultEngine<TokioMultiThreadExecutor>;

pub(super) struct Storage {
    store: Arc<DynObjectStore>,
    engine: Engine,
    /// Always there until drop.
    runtime: Option<Runtime>,
}

impl Storage {
    /// The local file system, durable.
    pub(super) fn local() -> Result<Storage, LakeError> {
        #[cfg(not(feature = "sabotage"))]
        let durable = true;
        #[cfg(feature = "sabotage")]
        let durable = !sabotage::is(Sabotage::LakeSync);
        Storage::new(Arc::new(LocalFileSystem::new().with_fsync(durable)))
    }

    /// Any store that holds local paths.
    pub(super) fn new(store: Arc<DynObjectStore>) -> Result<Storage, LakeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("lake-io")
            .enable_all()
            .build()
            .map_err(|source| LakeError::File {
                action: "starting the I/O threads of",
                path: "the lake".into(),
                source: source.into(),
            })?;
        let executor = TokioMultiThreadExecutor::new(runtime.handle().clone());
        let engine = DefaultEngineBuilder::new(store.clone())
            .with_task_executor(Arc::new(executor))
            .build();
        Ok(Storage {
            store,
            engine,
            runtime: Some(runtime),
        })
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        &self.store
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Waits for I/O; only on blocking threads.
    pub(super) fn wait<F: Future>(&self, work: F) -> F::Output {
        self.runtime
            .as_ref()
            .expect("taken only by drop")
            .block_on(work)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // A runtime may not be dropped where blocking is not allowed, and a lake is dropped anywhere. Nothing is in
        // flight: whoever does I/O holds the storage.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.store)
    }
}
