//! Where a lake is, and whether what lies there is one.
//!
//! Reads folders and writes nothing, except [`make_folder`]. A folder counts as a lake's when it is empty or
//! has at least one of the tables; a table's folder counts as a table when its `_delta_log` holds a commit, and as not yet
//! made when it is empty or holds only what a creation that was killed leaves behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::table::TableName;

use super::{Access, LakeError};

/// A plain path or `file://` URL as an absolute path.
pub(super) fn parse(location: &str) -> Result<PathBuf, LakeError> {
    let refuse = |reason: &str| LakeError::Location {
        location: location.to_owned(),
        reason: reason.to_owned(),
    };
    match location.split_once("://") {
        None if location.is_empty() => Err(refuse("the path is empty")),
        None => std::path::absolute(location)
            .map_err(|error| refuse(&format!("the path cannot be made absolute ({error})"))),
        Some(("file", _)) => url::Url::parse(location)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .ok_or_else(|| {
                refuse("that is not the URL of a local file; write file:///absolute/path")
            }),
        Some((scheme, _)) => Err(refuse(&format!(
            "`{scheme}://` is not supported by this version; give a path or a file:// URL (object stores can be mounted)"
        ))),
    }
}

/// Which of the tables exist, in the order of [`TableName::ALL`].
pub(super) fn inspect(root: &Path, access: Access) -> Result<[bool; 3], LakeError> {
    let entries = list(root)?;
    let foreign = |found: String| LakeError::Foreign {
        path: root.to_owned(),
        found,
    };
    if entries.iter().any(|name| name == "_delta_log") {
        return Err(foreign(
            "it is itself a Delta table (the lake is the folder above its tables)".to_owned(),
        ));
    }
    let known = |name: &String| TableName::ALL.iter().any(|table| table.as_str() == name);
    if let Some(other) = entries.first()
        && !entries.iter().any(known)
    {
        return Err(foreign(format!("it holds `{other}` and no table of ours")));
    }
    let mut present = [false; 3];
    for (table, present) in TableName::ALL.into_iter().zip(&mut present) {
        *present = is_table(&root.join(table.as_str()))?;
    }
    let missing = TableName::ALL
        .into_iter()
        .zip(present)
        .find(|(_, present)| !present);
    if let (Some((table, _)), Access::Existing) = (missing, access) {
        return Err(LakeError::Missing {
            path: root.to_owned(),
            missing: format!("it has no table `{table}`"),
        });
    }
    Ok(present)
}

/// Makes a folder and those above it durable: each new name is fsynced in its parent.
pub(super) fn make_folder(path: &Path) -> Result<(), LakeError> {
    let failed = |source: io::Error| LakeError::File {
        action: "making folder",
        path: path.to_owned(),
        source: source.into(),
    };
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            Ok(()) | Err(_) => {}
        }
        if let Some(parent) = dir.parent() {
            fs::File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether a folder is a table; an error where it is something else.
fn is_table(path: &Path) -> Result<bool, LakeError> {
    let entries = list(path)?;
    if entries.is_empty() {
        return Ok(false);
    }
    let log = list(&path.join("_delta_log"))?;
    if log.iter().any(|name| is_log_file(name)) {
        return Ok(true);
    }
    // A creation that was killed leaves an empty log, or `<name>#<number>` staged beside the target.
    let leftover = entries == ["_delta_log"] && log.iter().all(|name| name.contains('#'));
    if leftover {
        return Ok(false);
    }
    Err(LakeError::Foreign {
        path: path.to_owned(),
        found: format!("it holds `{}` and no Delta log", entries[0]),
    })
}

/// `<20 digits>.json` or a checkpoint of a version (Delta protocol, "Delta Log Entries", "Checkpoints").
fn is_log_file(name: &str) -> bool {
    name.split_once('.').is_some_and(|(version, rest)| {
        version.len() == 20
            && version.bytes().all(|b| b.is_ascii_digit())
            && (rest == "json" || rest.starts_with("checkpoint.") && rest.ends_with(".parquet"))
    })
}

/// Names in a folder, sorted; none where it does not exist. What a file system or desktop puts there by itself
/// (`lost+found` on a fresh volume, dot files) is not counted.
fn list(path: &Path) -> Result<Vec<String>, LakeError> {
    let failed = |source: io::Error| LakeError::File {
        action: "listing",
        path: path.to_owned(),
        source: source.into(),
    };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name != "lost+found" && !name.starts_with('.') {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_file_url_are_one_place() {
        assert_eq!(parse("/a/b c").unwrap(), Path::new("/a/b c"));
        assert_eq!(parse("file:///a/b%20c").unwrap(), Path::new("/a/b c"));
        assert!(parse("lake").unwrap().is_absolute());
        for (location, part) in [
            ("s3://bucket/lake", "`s3://` is not supported"),
            ("file://host/a", "not the URL of a local file"),
            ("", "empty"),
        ] {
            let error = parse(location).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
