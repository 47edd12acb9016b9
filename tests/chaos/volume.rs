//! Places for files that can be full, and that can be copied as a power cut would leave them.
//!
//! Owns mounts, each undone when dropped. An image is ext4 mounted with `commit=300`, so that what was not
//! fsynced is really lost: the copy of the mounted image holds what the disk held at that moment, and
//! mounting the copy replays its journal. The writers have to stand still while it is copied.
//!
//! Fails where the machine does not let us mount: the row is then not run, with the reason.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::harness::folder;
use crate::harness::process::{arg, run};
use crate::plan::Medium;

/// Images are files of this folder where it is there: in memory, so that a copy takes milliseconds.
const FAST: &str = "/dev/shm";
/// Inodes of a file system in memory.
const INODES: u32 = 16_384;

/// A place for files; unmounted and removed when dropped.
#[derive(Debug)]
pub(crate) struct Volume {
    folder: TempDir,
    image: Option<PathBuf>,
    mounted: bool,
}

impl Volume {
    /// An empty one.
    pub(crate) fn new(medium: Medium) -> Result<Volume, String> {
        let folder = match medium {
            Medium::Image(_) if Path::new(FAST).is_dir() => tempfile::Builder::new()
                .prefix("convolake-chaos-")
                .tempdir_in(FAST)
                .map_err(|error| error.to_string())?,
            _ => folder(),
        };
        let mut volume = Volume {
            folder,
            image: None,
            mounted: false,
        };
        std::fs::create_dir(volume.mount_point()).map_err(|error| error.to_string())?;
        match medium {
            Medium::Folder => {}
            Medium::Memory(megabytes) => {
                let options = format!("size={megabytes}m,nr_inodes={INODES}");
                volume.mount(&["-t", "tmpfs", "-o", &options, "none"])?;
            }
            Medium::Image(megabytes) => {
                let image = volume.folder.path().join("image");
                let made = std::fs::File::create(&image)
                    .and_then(|file| file.set_len(u64::from(megabytes) << 20));
                made.map_err(|error| format!("{}: {error}", image.display()))?;
                run(
                    "mkfs.ext4",
                    Command::new("mkfs.ext4").args(["-q", arg(&image)]),
                )?;
                volume.image = Some(image);
                volume.mount_image()?;
            }
        }
        Ok(volume)
    }

    /// Where its files are.
    pub(crate) fn path(&self) -> PathBuf {
        self.mount_point().join("files")
    }

    /// What a power cut would leave of it now.
    pub(crate) fn power_cut(&self) -> Result<Volume, String> {
        let from = self.image.as_ref().ok_or("only an image can lose power")?;
        let folder = tempfile::Builder::new()
            .prefix("convolake-chaos-")
            .tempdir_in(self.folder.path().parent().expect("a folder of a folder"))
            .map_err(|error| error.to_string())?;
        let image = folder.path().join("image");
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", arg(from), arg(&image)]);
        run("cp", &mut copy)?;
        let cut = Volume {
            folder,
            image: Some(image),
            mounted: false,
        };
        std::fs::create_dir(cut.mount_point()).map_err(|error| error.to_string())?;
        Ok(cut)
    }

    /// Mounts the copy of a power cut, which replays its journal.
    pub(crate) fn mount_image(&mut self) -> Result<(), String> {
        let image = self.image.clone().expect("of an image");
        self.mount(&["-o", "loop,commit=300", arg(&image)])
    }

    /// Everything so far is on its disk.
    pub(crate) fn sync(&self) -> Result<(), String> {
        run(
            "sync",
            Command::new("sync").arg("-f").arg(self.mount_point()),
        )
        .map(drop)
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) {
        let path = self.mount_point().join("filler");
        // Ends with the error that is wanted.
        let filled = std::fs::File::create(path)
            .and_then(|mut file| std::io::copy(&mut std::io::repeat(0), &mut file));
        assert!(
            filled.is_err(),
            "a volume of its own is to be filled, not the machine's disk"
        );
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.mount_point().join("filler")).unwrap();
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    fn mount(&mut self, arguments: &[&str]) -> Result<(), String> {
        let point = self.mount_point();
        run("mount", Command::new("mount").args(arguments).arg(&point))?;
        self.mounted = true;
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a process that is still ending may hold a file open.
            if let Err(why) = run(
                "umount",
                Command::new("umount").arg("-l").arg(self.mount_point()),
            ) {
                eprintln!("{why}");
            }
        }
    }
}
