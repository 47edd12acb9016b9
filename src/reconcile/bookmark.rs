//! The page that a pass goes on from, in a small file that survives a crash.
//!
//! The file is replaced whole (written beside, fsynced, renamed, its folder fsynced), so it is the old one or the new
//! one. It names the API that its token is of; a token of another one, or a file that is none of ours, counts as no
//! bookmark: a pass that begins anew is safe, only longer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file's name where a lake keeps it; a name with a dot is no table's.
pub const FILE_NAME: &str = ".reconcile.json";

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Content {
    api_url: String,
    next_token: String,
}

/// A file that may hold the token of the next page.
#[derive(Debug, Clone)]
pub struct Bookmark {
    path: PathBuf,
    api_url: String,
}

/// The file could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("--state {}: the bookmark cannot be kept; choose another file", path.display())]
pub struct BookmarkError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Bookmark {
    /// The bookmark at `path` of passes over this API.
    pub fn new(path: PathBuf, api_url: &str) -> Self {
        Bookmark {
            path,
            api_url: api_url.to_owned(),
        }
    }

    /// The token of the page to go on from, if there is one.
    pub(super) async fn read(&self) -> Option<String> {
        let bookmark = self.clone();
        let read = move || {
            let text = fs::read(&bookmark.path).ok()?;
            let content: Content = serde_json::from_slice(&text).ok()?;
            (content.api_url == bookmark.api_url).then_some(content.next_token)
        };
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// Makes `token` the one to go on from.
    pub(super) async fn write(&self, token: &str) -> Result<(), BookmarkError> {
        let content = Content {
            api_url: self.api_url.clone(),
            next_token: token.to_owned(),
        };
        let text = serde_json::to_vec(&content).expect("two texts are JSON");
        self.change(move |path| {
            let beside = path.with_extension("next");
            let mut file = File::create(&beside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            sync_folder(path)
        })
        .await
    }

    /// The pass is done: the next one begins anew.
    pub(super) async fn clear(&self) -> Result<(), BookmarkError> {
        self.change(|path| match fs::remove_file(path) {
            Ok(()) => sync_folder(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }

    async fn change(
        &self,
        change: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
    ) -> Result<(), BookmarkError> {
        let path = self.path.clone();
        let done = tokio::task::spawn_blocking(move || change(&path)).await;
        let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|source| BookmarkError {
            path: self.path.clone(),
            source,
        })
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_kept_replaced_and_cleared_and_another_apis_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let bookmark = Bookmark::new(path.clone(), "https://a.example/");
        assert_eq!(bookmark.read().await, None);
        bookmark.write("one").await.unwrap();
        bookmark.write("two").await.unwrap();
        assert_eq!(bookmark.read().await.as_deref(), Some("two"));
        let other = Bookmark::new(path.clone(), "https://b.example/");
        assert_eq!(other.read().await, None);
        fs::write(&path, "{\"next-token\":").unwrap();
        assert_eq!(bookmark.read().await, None);
        for _ in 0..2 {
            bookmark.clear().await.unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let nowhere = Bookmark::new(folder.path().join("a/b"), "https://a.example/");
        let error = nowhere.write("one").await.unwrap_err();
        assert!(error.to_string().contains("--state"), "{error}");
    }
}
