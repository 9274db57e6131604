//! Acting as a holder: a capability file, the secret key beside it, and connections to the vats
//! that its capabilities live at.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::{FromClientHook, Request, Response};
use distos_abi::{Fault, HolderKey, VatName};
use distos_client::{Connection, fault_of};
use distos_schemas::capability_capnp::capability;
use distos_types::{CapEntry, CapFile, Chain, HolderSecret};

use super::files;

/// The longest capability or key file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// How long a service may take to let somebody in. Its socket is there while it is started again,
/// and also while that fails.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Somebody with a key and capabilities. What it restores lives as long as it does: its connections
/// end with it.
pub struct Holder {
    /// The capability file.
    pub path: PathBuf,
    /// What it holds.
    pub file: CapFile,
    /// The key that proves possession.
    pub secret: HolderSecret,
    sockets: PathBuf,
    /// By whose door it is, and whether it is end to end.
    connections: RefCell<BTreeMap<(VatName, bool), Rc<Connection>>>,
    /// Live entries of the file. What is opened through one, such as a region by its name, is
    /// derived from it and would end with it.
    roots: RefCell<BTreeMap<String, capability::Client>>,
}

/// Reads a capability file.
pub fn read_cap_file(path: &Path) -> Result<CapFile, Fault> {
    let text = files::read_text(path, MAX_FILE_BYTES)?;
    CapFile::parse(&text).map_err(|f| named(path, f))
}

/// Reads the secret key of a capability file: the file beside it with the extension `key`.
pub fn read_secret(cap_path: &Path) -> Result<HolderSecret, Fault> {
    let path = cap_path.with_extension("key");
    read_secret_file(&path).map_err(|fault| match fault {
        Fault::NotFound(_) => Fault::NotFound(format!(
            "{} (the secret key of {}): name the capability file of who acts with --as FILE",
            path.display(),
            cap_path.display()
        )),
        other => other,
    })
}

/// Reads a secret key file, and complains where its key is not kept out of swap and dumps.
pub fn read_secret_file(path: &Path) -> Result<HolderSecret, Fault> {
    let text = files::read_text(path, MAX_FILE_BYTES)?;
    let secret = HolderSecret::from_file_text(&text).map_err(|f| named(path, f))?;
    if let Some(why) = secret.exposure() {
        super::complain(&format!("{}: the key in memory is {why}", path.display()));
    }
    Ok(secret)
}

/// A node would refuse a key that is not the file's too, without knowing which file to mend (C4).
fn check_key(path: &Path, file: &CapFile, secret: &HolderSecret) -> Result<(), Fault> {
    let holders: Vec<HolderKey> = file.entries.iter().map(|e| e.chain.holder()).collect();
    match holders.first() {
        Some(holder) if !holders.contains(&secret.key()) => Err(Fault::Unauthenticated(format!(
            "{} is not the key of {}, which is bound to key {}…: copy the right one beside it",
            path.with_extension("key").display(),
            path.display(),
            super::text::short(&holder.to_string())
        ))),
        _ => Ok(()),
    }
}

/// Puts the file's name in front of what is wrong with it.
pub fn named(path: &Path, fault: Fault) -> Fault {
    match fault {
        Fault::Malformed(what) => Fault::Malformed(format!("{}: {what}", path.display())),
        other => other,
    }
}

/// The entry called `name`, or the only one of the file.
pub fn pick<'f>(file: &'f CapFile, name: Option<&str>) -> Result<&'f CapEntry, Fault> {
    let names: Vec<&str> = file.entries.iter().map(|e| e.name.as_str()).collect();
    match (name, file.entries.as_slice()) {
        (Some(name), _) => file.find(name).ok_or_else(|| {
            Fault::NotFound(format!("the file has no entry '{name}', it has: {}", names.join(", ")))
        }),
        (None, [only]) => Ok(only),
        (None, _) => Err(Fault::malformed(format!(
            "the file holds several capabilities: choose one with --entry ({})",
            names.join(", ")
        ))),
    }
}

impl Holder {
    /// Reads the file and its key. `node` is the node's directory if the caller named one;
    /// otherwise the file's own hint tells where the sockets are.
    pub fn load(path: &Path, node: Option<&Path>) -> Result<Holder, Fault> {
        let file = read_cap_file(path)?;
        let secret = read_secret(path)?;
        check_key(path, &file, &secret)?;
        let hint = file.sockets.as_ref().map(PathBuf::from);
        let sockets = node.map(|n| n.join("run")).or(hint).ok_or_else(|| {
            Fault::malformed(format!(
                "{} does not tell where its node is: add --node DIR",
                path.display()
            ))
        })?;
        Ok(Holder {
            path: path.to_path_buf(),
            file,
            secret,
            sockets,
            connections: RefCell::default(),
            roots: RefCell::default(),
        })
    }

    /// The entry `name` of the file.
    pub fn entry(&self, name: &str) -> Result<&CapEntry, Fault> {
        self.file.find(name).ok_or_else(|| {
            let path = self.path.display();
            Fault::NotFound(format!("{path} holds no '{name}': act with another file (--as FILE)"))
        })
    }

    /// A live capability for the entry `name` of the file; the same one each time.
    pub async fn root<T: FromClientHook>(&self, name: &str) -> Result<T, Fault> {
        if let Some(live) = self.roots.borrow().get(name) {
            return Ok(live.clone().cast_to());
        }
        let entry = self.entry(name)?;
        let live: capability::Client = self.restore(&entry.chain).await?;
        self.roots.borrow_mut().insert(name.to_owned(), live.clone());
        Ok(live.cast_to())
    }

    /// A live capability for a chain, proving possession of this holder's key (C4).
    pub async fn restore<T: FromClientHook>(&self, chain: &Chain) -> Result<T, Fault> {
        let vat = &chain.root().vat;
        let connection = self.connection(chain).await?;
        let live = connection.restore(chain, &self.secret);
        tokio::time::timeout(ANSWER_WAIT, live)
            .await
            .unwrap_or_else(|_| Err(self.explain(vat, Fault::unavailable(1000, "it is silent"))))
    }

    /// A capability file with one capability of this node.
    pub fn file_of(&self, name: &str, chain: Chain) -> CapFile {
        let entries = vec![CapEntry { name: name.to_owned(), chain }];
        CapFile { node: self.file.node, sockets: self.socket_hint(), entries }
    }

    /// Where the node's sockets are, as a full path.
    pub fn socket_hint(&self) -> Option<String> {
        let full = std::path::absolute(&self.sockets).ok()?;
        full.to_str().map(str::to_owned)
    }

    /// To the vat of a chain: encrypted to it, if the chain asks for that.
    async fn connection(&self, chain: &Chain) -> Result<Rc<Connection>, Fault> {
        let (vat, end_to_end) = (&chain.root().vat, chain.authority().caveats.end_to_end);
        let place = (vat.clone(), end_to_end);
        if let Some(open) = self.connections.borrow().get(&place) {
            return Ok(open.clone());
        }
        let socket = self.sockets.join(format!("{vat}.sock"));
        let opened = match end_to_end {
            true => {
                let opened = Connection::open_end_to_end(&socket, chain, &self.secret);
                let silent = |_| Err(Fault::unavailable(1000, "it is silent"));
                tokio::time::timeout(2 * ANSWER_WAIT, opened).await.unwrap_or_else(silent)
            }
            false => Connection::open(&socket).await,
        };
        let opened = Rc::new(opened.map_err(|fault| match fault {
            Fault::Unavailable { .. } => self.explain(vat, fault),
            other => other,
        })?);
        self.connections.borrow_mut().insert(place, opened.clone());
        Ok(opened)
    }

    fn explain(&self, vat: &VatName, fault: Fault) -> Fault {
        let node = self.sockets.parent().unwrap_or(&self.sockets);
        if super::up::is_running(node) {
            let why = format!("the service '{vat}' does not answer ({fault}): see `distos status`");
            return Fault::unavailable(1000, why);
        }
        let node = node.display();
        Fault::unavailable(
            1000,
            format!(
                "no node is running in {node}: start one with `distos up images/single.toml --node {node}`"
            ),
        )
    }
}

/// Sends a call and waits for its answer; an exception is the fault that it carries.
pub async fn call<P, R>(request: Request<P, R>) -> Result<Response<R>, Fault>
where
    P: capnp::traits::Owned,
    R: capnp::traits::Pipelined + capnp::traits::Owned + 'static + Unpin,
    <R as capnp::traits::Pipelined>::Pipeline: capnp::capability::FromTypelessPipeline,
{
    request.send().promise.await.map_err(|e| fault_of(&e))
}

/// Reads an answer; one that breaks its schema is a fault of the service.
pub fn read<T>(reading: impl FnOnce() -> capnp::Result<T>) -> Result<T, Fault> {
    reading().map_err(|e| fault_of(&e))
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Random bytes from the machine.
pub fn random<const N: usize>() -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Fault::internal(format!("no randomness: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_abi::{Authority, CapId, Kind, NodeId, ObjectId};
    use distos_types::Root;

    fn file(names: &[&str]) -> CapFile {
        let secret = HolderSecret::from_seed([1; 32]);
        let root = Root {
            node: NodeId(secret.key().0),
            key_epoch: 1,
            vat: VatName::new("memory").unwrap(),
            kind: Kind(1),
            object: ObjectId(0),
            cap: CapId(1),
            holder: secret.key(),
            authority: Authority::FULL,
            nonce: [0; 16],
        };
        let node = root.node;
        let chain = Chain::issue(root, &secret);
        let entry = |n: &&str| CapEntry { name: (*n).to_owned(), chain: chain.clone() };
        CapFile { node, sockets: None, entries: names.iter().map(entry).collect() }
    }

    #[test]
    fn a_holder_of_several_capabilities_must_say_which() {
        assert_eq!(pick(&file(&["a"]), None).unwrap().name, "a");
        assert_eq!(pick(&file(&["a", "b"]), Some("b")).unwrap().name, "b");
        let fault = pick(&file(&["a", "b"]), None).unwrap_err();
        assert!(fault.to_string().contains("--entry (a, b)"));
        assert_eq!(pick(&file(&["a"]), Some("x")).unwrap_err().code(), 15);
    }

    #[test]
    fn a_damaged_file_or_missing_key_is_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("red.cap");
        assert_eq!(Holder::load(&path, None).err().unwrap().code(), 15);
        let text = file(&["a"]).to_text();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        let fault = Holder::load(&path, None).err().unwrap();
        assert!(fault.to_string().contains("red.cap") && fault.code() == 16, "{fault}");
        std::fs::write(&path, &text).unwrap();
        let fault = Holder::load(&path, None).err().unwrap();
        assert!(fault.to_string().contains("red.key"), "{fault}");
        let secret = HolderSecret::from_seed([1; 32]);
        std::fs::write(path.with_extension("key"), secret.to_file_text().as_bytes()).unwrap();
        assert!(Holder::load(&path, None).err().unwrap().to_string().contains("--node"));
        assert!(Holder::load(&path, Some(dir.path())).is_ok());
    }
}
