//! The operator's files in a node's directory: `operator/operator.key` and `.pub`, which are made
//! before the kernel starts, and `operator.cap`, which holds what the kernel signed for that key.
//! The kernel never sees the secret half.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use distos_abi::{Fault, HolderKey};
use distos_types::{CapFile, Chain, HolderSecret, Root, key_file_text, parse_key_file};

use crate::cli::files::{self, io_fault};
use crate::cli::holder::{named, read_cap_file, read_secret_file};

/// The names of the files.
const KEY: &str = "operator.key";
const PUBLIC_KEY: &str = "operator.pub";
const CAPABILITIES: &str = "operator.cap";
const MAX_KEY_BYTES: u64 = 4096;

/// Where the operator's files of the node in `node` are.
pub fn directory(node: &Path) -> PathBuf {
    node.join("operator")
}

/// The operator's capability file.
pub fn capabilities(node: &Path) -> PathBuf {
    directory(node).join(CAPABILITIES)
}

/// Makes the directory, which only its owner enters.
pub fn make_directory(node: &Path) -> Result<PathBuf, Fault> {
    let directory = directory(node);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    let closed =
        made.and_then(|()| std::fs::set_permissions(&directory, Permissions::from_mode(0o700)));
    closed.map_err(|e| io_fault(&directory, &e))?;
    Ok(directory)
}

/// The files that are written here: what is left of a start that was killed stands beside them.
pub fn places(node: &Path) -> [PathBuf; 3] {
    [KEY, PUBLIC_KEY, CAPABILITIES].map(|name| directory(node).join(name))
}

/// The operator's public key. The pair is made at the first boot; an operator who moves the secret
/// half elsewhere leaves `operator.pub` behind, which is all that later boots need.
pub fn key(node: &Path) -> Result<HolderKey, Fault> {
    let directory = make_directory(node)?;
    let (file, public) = (directory.join(KEY), directory.join(PUBLIC_KEY));
    match files::read_text(&public, MAX_KEY_BYTES) {
        Ok(text) => {
            return parse_key_file(&text)
                .map_err(|e| Fault::Corrupt(format!("{}: {e}", public.display())));
        }
        Err(Fault::NotFound(_)) => {}
        Err(fault) => return Err(fault),
    }
    let secret = match read_secret_file(&file) {
        Err(Fault::NotFound(_)) => {
            let secret =
                HolderSecret::fill(|seed| getrandom::fill(seed)).map_err(Fault::internal)?;
            files::write_durably(&file, secret.to_file_text().as_bytes(), files::SECRET)?;
            secret
        }
        // The start that made it was killed before it wrote the other half.
        found => found?,
    };
    files::write_durably(&public, key_file_text(secret.key()).as_bytes(), files::PUBLIC)?;
    Ok(secret.key())
}

/// Writes the capability file that the kernel gives the operator at a boot (`text`). A certificate
/// that is there and says the same stays: what was delegated from it goes on under the same link,
/// and the node need not remember another.
pub fn write_capabilities(node: &Path, text: &str) -> Result<(), Fault> {
    let path = capabilities(node);
    let mut given = CapFile::parse(text).map_err(|fault| named(&path, fault))?;
    // One that cannot be read holds nothing that the kernel does not give again.
    if let Ok(known) = read_cap_file(&path) {
        for entry in &mut given.entries {
            if let Some(old) = known.find(&entry.name)
                && says_the_same(&old.chain, &entry.chain)
            {
                entry.chain = old.chain.clone();
            }
        }
    }
    files::write_durably(&path, given.to_text().as_bytes(), files::SECRET)
}

/// Whether two certificates of the kernel differ in nothing but their random bytes.
fn says_the_same(old: &Chain, new: &Chain) -> bool {
    let same = Root { nonce: new.root().nonce, ..old.root().clone() };
    same == *new.root() && old.links().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_abi::{Authority, CapId, Kind, NodeId, ObjectId, VatName};
    use distos_types::CapEntry;

    fn file(cap: u64, nonce: u8) -> CapFile {
        let kernel = HolderSecret::from_seed([1; 32]);
        let root = Root {
            node: NodeId(kernel.key().0),
            key_epoch: 1,
            vat: VatName::new("memory").unwrap(),
            kind: Kind(1),
            object: ObjectId::ROOT,
            cap: CapId(cap),
            holder: HolderKey([2; 32]),
            authority: Authority::FULL,
            nonce: [nonce; 16],
        };
        let chain = Chain::issue(root, &kernel);
        let entries = vec![CapEntry { name: "regions".to_owned(), chain }];
        CapFile { node: NodeId(kernel.key().0), sockets: None, entries }
    }

    #[test]
    fn an_operator_keeps_the_key_and_gets_the_public_half_again() {
        let dir = tempfile::tempdir().unwrap();
        let made = key(dir.path()).unwrap();
        let [secret, public, _] = places(dir.path());
        assert_eq!(read_secret_file(&secret).unwrap().key(), made);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory(dir.path())), 0o700);
        assert_eq!((mode(&secret), mode(&public)), (0o600, 0o644));
        std::fs::remove_file(&public).unwrap();
        assert_eq!(key(dir.path()), Ok(made), "the secret half is not replaced");
        std::fs::remove_file(&secret).unwrap();
        assert_eq!(key(dir.path()), Ok(made), "the public half is enough");
        assert!(!secret.exists());
    }

    /// A fresh certificate at every boot would cost the node a slot for each, for ever.
    #[test]
    fn a_certificate_that_says_the_same_is_kept_and_another_replaced() {
        let dir = tempfile::tempdir().unwrap();
        make_directory(dir.path()).unwrap();
        let path = capabilities(dir.path());
        for (given, stands) in [((7, 1), (7, 1)), ((7, 2), (7, 1)), ((8, 3), (8, 3))] {
            write_capabilities(dir.path(), &file(given.0, given.1).to_text()).unwrap();
            assert_eq!(read_cap_file(&path).unwrap(), file(stands.0, stands.1));
        }
        std::fs::write(&path, "cut").unwrap();
        write_capabilities(dir.path(), &file(8, 4).to_text()).unwrap();
        assert_eq!(read_cap_file(&path).unwrap(), file(8, 4));
    }
}
