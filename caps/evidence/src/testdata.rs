//! Real evidence that stands beside the repository, for tests.

use std::path::PathBuf;

/// Where `DISTOS_TESTDATA` says, or beside the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    let root = std::env::var_os("DISTOS_TESTDATA").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/testdata"),
        PathBuf::from,
    );
    root.join("attestation").join(name)
}

/// The file of that name under `attestation`; `None`, and a line that says so, if there is no such folder.
pub(crate) fn read(name: &str) -> Option<Vec<u8>> {
    read_with(name, |path| std::fs::read(path))
}

/// The files in the folder of that name, with their names.
pub(crate) fn list(name: &str) -> Option<Vec<(String, Vec<u8>)>> {
    let list = |path: &std::path::Path| {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            files.push((name, std::fs::read(&path)?));
        }
        files.sort();
        Ok(files)
    };
    read_with(name, list)
}

fn read_with<T>(
    name: &str,
    read: impl FnOnce(&std::path::Path) -> std::io::Result<T>,
) -> Option<T> {
    let path = path(name);
    match read(&path) {
        Ok(found) => Some(found),
        Err(error) if std::env::var_os("DISTOS_TESTDATA").is_none() => {
            eprintln!("NOT TESTED: {}: {error}; DISTOS_TESTDATA names its folder", path.display());
            None
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}
