//! Where a file lives: SQLite's locks can't be trusted on network file systems.

use std::path::Path;

/// Warns when a file is on a network file system. Known on Linux only.
pub(crate) fn warn_of_network(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Ok(path) = path.canonicalize() else {
        return;
    };
    if let Some(file_system) = file_system(&mounts, &path)
        && is_network(file_system)
    {
        tracing::warn!(
            path = %path.display(),
            file_system,
            "a store on a network file system is not safe: locks of other machines may not be \
             seen, and an operation may run twice; put the file on a local disk"
        );
    }
}

/// The type of the file system that a path is on, by the lines of `/proc/self/mountinfo`:
/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw`.
fn file_system<'m>(mounts: &'m str, path: &Path) -> Option<&'m str> {
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let point = unescape(mount.split(' ').nth(4)?);
            path.starts_with(&point).then_some((point.len(), source.split(' ').next()?))
        })
        // Of mounts over each other the last one counts, and so does `max_by_key`'s.
        .max_by_key(|(length, _)| *length)
        .map(|(_, file_system)| file_system)
}

/// Undoes the kernel's `\040` for a space, and its like.
fn unescape(point: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .iter()
        .fold(point.to_owned(), |point, (escaped, plain)| point.replace(escaped, plain))
}

fn is_network(file_system: &str) -> bool {
    const NETWORK: [&str; 16] = [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
    ];
    NETWORK.contains(&file_system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_system_is_told_from_a_local_one() {
        let mounts = "\
            21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            40 21 0:40 / /srv/our\\040files rw - nfs4 server:/export rw\n\
            41 40 8:2 / /srv/our\\040files/fast rw shared:2 master:3 - xfs /dev/sdb rw\n";
        let on = |path: &str| file_system(mounts, Path::new(path)).unwrap();
        assert_eq!(on("/srv/retrysafe.db"), "ext4");
        assert_eq!(on("/srv/our files/retrysafe.db"), "nfs4");
        assert_eq!(on("/srv/our files/fast/retrysafe.db"), "xfs");
        assert!(is_network(on("/srv/our files/retrysafe.db")) && !is_network(on("/")));
    }
}
