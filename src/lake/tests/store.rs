//! The local file system with something between it and the lake.

use std::fmt;

use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// What happens to one put of a log entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// It lands; the answer is an error.
    Lost,
    /// It lands, is sent again by the client, and that one meets the first.
    Repeated,
    /// It does not land.
    Before,
}

/// What stands between.
#[async_trait::async_trait]
pub(super) trait Between: fmt::Debug + Send + Sync + 'static {
    /// Before a log entry is put; the fault that it gets, if any.
    async fn put(&self) -> Option<Fault>;

    /// Before a log entry is looked for.
    async fn look(&self) {}
}

/// The store.
#[derive(Debug)]
pub(super) struct Hooked<B> {
    pub(super) inner: LocalFileSystem,
    pub(super) between: B,
}

impl<B: fmt::Debug> fmt::Display for Hooked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooked({:?}, {})", self.between, self.inner)
    }
}

fn is_entry(path: &StorePath) -> bool {
    path.as_ref().ends_with(".json")
}

#[async_trait::async_trait]
impl<B: Between> ObjectStore for Hooked<B> {
    async fn put_opts(
        &self,
        path: &StorePath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let lost = || Error::Generic {
            store: "hooked",
            source: "timed out".into(),
        };
        let fault = match is_entry(path) {
            true => self.between.put().await,
            false => None,
        };
        if fault == Some(Fault::Before) {
            return Err(lost());
        }
        let done = self.inner.put_opts(path, payload, options).await?;
        match fault {
            None | Some(Fault::Before) => Ok(done),
            Some(Fault::Lost) => Err(lost()),
            Some(Fault::Repeated) => Err(Error::AlreadyExists {
                path: path.to_string(),
                source: "412".into(),
            }),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &StorePath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(
        &self,
        path: &StorePath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        // Not every read: one that only asks whether an entry is there begins each look at the log.
        if is_entry(path) && options.head {
            self.between.look().await;
        }
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<StorePath>>,
    ) -> BoxStream<'static, object_store::Result<StorePath>> {
        self.inner.delete_stream(paths)
    }

    fn list(
        &self,
        prefix: Option<&StorePath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&StorePath>,
    ) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &StorePath,
        to: &StorePath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
