//! A real node, and acting on it as a holder of its capabilities.

use std::fs;
use std::path::{Path, PathBuf};

use capnp::capability::FromClientHook;
use distos_client::Connection;
use distos_e2e::Node;
use distos_types::{CapFile, Chain, HolderSecret};

use crate::figures::Failure;
use crate::vats;

/// Boots a node of the benchmark's own vats.
pub fn boot(slots: u32) -> Result<Node, Failure> {
    let program = std::env::current_exe()?;
    let program = program.display();
    let (null, bare, tree) = (vats::NULL, vats::BARE, vats::TREE);
    let image = format!(
        r#"
image = {{ name = "bench", slots = {slots} }}
grant = [
  {{ to = "{tree}", kernel = "outbox" }},
  {{ to = "node", kernel = "control" }},
]

[operator]
null = {{ of = "{null}/regions", rights = ["read"] }}
tree = {{ of = "{tree}/queue", rights = ["create", "read"] }}
node = {{ of = "node/node", rights = ["read", "admin"] }}

[vat.{null}]
program = "{program}"
serves = ["regions"]
listen = true

[vat.{bare}]
program = "{program}"
listen = true

[vat.{tree}]
program = "{program}"
serves = ["queue"]
listen = true
limits = {{ memory_bytes = 8589934592 }}

[vat.node]
program = "node"
serves = ["node"]
listen = true
"#
    );
    Ok(Node::boot_with(&image))
}

/// Where a vat listens.
pub fn socket(node: &Node, vat: &str) -> PathBuf {
    node.directory().join("run").join(format!("{vat}.sock"))
}

/// Somebody with a capability file and its key.
pub struct Holder {
    /// The file.
    pub file: CapFile,
    /// The key.
    pub secret: HolderSecret,
    sockets: PathBuf,
}

impl Holder {
    /// The node's operator.
    pub fn operator(node: &Node) -> Result<Holder, Failure> {
        Holder::load(node, &node.directory().join("operator/operator.cap"))
    }

    /// Whoever the file belongs to; the key stands beside it.
    pub fn load(node: &Node, file: &Path) -> Result<Holder, Failure> {
        let secret =
            HolderSecret::from_file_text(&fs::read_to_string(file.with_extension("key"))?)?;
        let file = CapFile::parse(&fs::read_to_string(file)?)?;
        Ok(Holder { file, secret, sockets: node.directory().join("run") })
    }

    /// An entry of the file.
    pub fn chain(&self, name: &str) -> Result<&Chain, Failure> {
        let entry = self.file.find(name).ok_or_else(|| format!("the file has no entry {name}"))?;
        Ok(&entry.chain)
    }

    /// Connects to where an entry of the file lives.
    pub async fn connect(&self, name: &str) -> Result<Connection, Failure> {
        let vat = self.chain(name)?.root().vat.clone();
        Ok(Connection::open(&self.sockets.join(format!("{vat}.sock"))).await?)
    }

    /// A live entry of the file. It lives as long as the connection.
    pub async fn restore<T: FromClientHook>(&self, name: &str) -> Result<(Connection, T), Failure> {
        let connection = self.connect(name).await?;
        let live = connection.restore(self.chain(name)?, &self.secret).await?;
        Ok((connection, live))
    }
}

/// Runs a measurement on one thread, as a client of DistOS runs.
pub fn on_one_thread<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}
