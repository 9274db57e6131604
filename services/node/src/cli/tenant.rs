//! `tenant add` and `tenant list`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use distos_abi::{Authority, Caveats, Fault, Rights};
use distos_identity::TenantName;
use distos_schemas::network_capnp::network;
use distos_schemas::node_capnp::node;
use distos_types::{CapEntry, CapFile, HolderSecret, key_file_text};
use serde_json::{Value, json};

use super::holder::{Holder, call, named, random, read, read_secret};
use super::network::agents_chain;
use super::{Context, Report, files, node as node_commands, secret, text, workload};

/// The operator's capability to the network service, which not every image has.
const NETWORK: &str = "network";

/// Commands about tenants.
#[derive(Subcommand)]
pub enum TenantCommand {
    /// Make a tenant, with a capability file bound to a key of its own
    #[command(after_help = "\
Example:
  distos tenant add red --quota-bytes 8G
writes red.cap (what red may do), red.key (red's secret: give it to nobody but red) and red.pub
(red's public key, for whoever delegates to red)
  distos tenant add red --end-to-end
the same, and whoever passes red's connections on, a gateway say, hears nothing of what red says")]
    Add(AddArgs),
    /// The node's tenants
    #[command(after_help = "Example:\n  distos tenant list")]
    List,
}

/// Arguments of `tenant add`.
#[derive(Args, Clone)]
pub struct AddArgs {
    /// 1 to 20 of a-z, 0-9 and '-'
    name: String,
    #[command(flatten)]
    terms: Terms,
    /// Directory for the three files
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
}

/// What a tenant may hold, and by which ways.
#[derive(Args, Clone, Copy)]
pub struct Terms {
    /// Bytes of all its regions together
    #[arg(long, default_value = "8G", value_parser = text::parse_bytes, value_name = "SIZE")]
    pub quota_bytes: u64,
    /// Tasks queued or running
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub quota_tasks: u32,
    /// Capability slots
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub quota_slots: u32,
    /// Only over connections that are encrypted from the tenant to the service, whatever passes them on
    #[arg(long)]
    pub end_to_end: bool,
}

impl Terms {
    fn caveats(self) -> Caveats {
        Caveats { end_to_end: self.end_to_end, ..Caveats::NONE }
    }
}

/// The rights that a tenant gets on each of the operator's root capabilities.
fn tenant_rights() -> [(&'static str, Rights); 3] {
    let all = |rights: &[Rights]| rights.iter().fold(Rights::NONE, |a, b| a.join(*b));
    [
        (
            "regions",
            all(&[Rights::CREATE, Rights::LIST, Rights::READ, Rights::WRITE, Rights::DROP]),
        ),
        ("queue", all(&[Rights::RUN, Rights::LIST, Rights::READ, Rights::CANCEL])),
        ("gpus", all(&[Rights::LIST, Rights::LEASE])),
    ]
}

/// What it gets on the secret broker, which not every image has.
fn secrets_rights() -> Rights {
    let rights = [Rights::CREATE, Rights::LIST, Rights::READ, Rights::WRITE, Rights::DROP];
    rights.into_iter().fold(Rights::NONE, Rights::join)
}

pub(super) async fn command(context: &Context, command: TenantCommand) -> Result<Report, Fault> {
    let holder = context.holder()?;
    match command {
        TenantCommand::Add(args) => {
            let added = add(&holder, &args.name, args.terms, &args.out).await?;
            Ok(Report { text: added.text(), json: added.json() })
        }
        TenantCommand::List => {
            let client: node::Client = holder.root("node").await?;
            let tenants = node_commands::tenants(&client).await?;
            let text = node_commands::tenant_table(&tenants);
            Ok(Report { json: Value::Array(tenants), text })
        }
    }
}

/// A new tenant.
pub struct Added {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its capability file.
    pub cap: PathBuf,
    /// Its public key.
    pub key: String,
}

impl Added {
    fn json(&self) -> Value {
        let file = |extension| self.cap.with_extension(extension).display().to_string();
        json!({
            "id": self.id, "name": self.name, "key": self.key,
            "cap": file("cap"), "secret": file("key"), "public": file("pub"),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "tenant {} ({}), key {}…\n  {}  what it may do\n  {}  its secret key\n  {}  its public key",
            self.name,
            self.id,
            text::short(&self.key),
            self.cap.display(),
            self.cap.with_extension("key").display(),
            self.cap.with_extension("pub").display(),
        )
    }
}

/// Makes a tenant and writes its files into `out`. The key is on disk before the node knows it,
/// and a second call after an interruption goes on with that key: no tenant is left without one.
pub async fn add(holder: &Holder, name: &str, terms: Terms, out: &Path) -> Result<Added, Fault> {
    // Before a key is made, and a file and an executor named after it.
    TenantName::new(name)?;
    let cap = out.join(format!("{name}.cap"));
    if cap.exists() {
        return Err(Fault::Exists(format!("{}: choose another --out", cap.display())));
    }
    let key_path = cap.with_extension("key");
    let is_new = !key_path.exists();
    if is_new {
        let secret = HolderSecret::from_seed(random()?);
        files::write(&key_path, secret.to_file_text().as_bytes(), files::SECRET)?;
    }
    let secret = read_secret(&cap)?;
    let client: node::Client = holder.root("node").await?;
    let made = async {
        // Before there is a tenant: if the network service is away, nothing is half made.
        let agents = match holder.file.find(NETWORK) {
            Some(_) => {
                let network: network::Client = holder.root(NETWORK).await?;
                let to = (secret.key(), terms.caveats());
                Some(agents_chain(holder, &network, name, to).await?)
            }
            None => None,
        };
        Ok((register(&client, name, &secret, terms.quota_slots).await?, agents))
    };
    let (id, agents) = match made.await {
        Ok(made) => made,
        Err(fault) => {
            if is_new {
                // The node refused the key, so nothing depends on it.
                let _ = std::fs::remove_file(&key_path);
            }
            return Err(fault);
        }
    };
    let public = key_file_text(secret.key());
    files::write(&cap.with_extension("pub"), public.as_bytes(), files::PUBLIC)?;
    let mut file = delegated(holder, &secret, terms)?;
    if let Some(chain) = agents {
        file.entries.push(CapEntry { name: workload::ENTRY.to_owned(), chain });
    }
    files::write(&cap, file.to_text().as_bytes(), files::SECRET)?;
    Ok(Added { id, name: name.to_owned(), cap, key: secret.key().to_string() })
}

async fn register(
    client: &node::Client,
    name: &str,
    secret: &HolderSecret,
    slots: u32,
) -> Result<u32, Fault> {
    let key = secret.key();
    let mut request = client.add_tenant_request();
    request.get().set_name(name);
    request.get().set_holder(&key.0);
    request.get().set_slot_quota(slots);
    let fault = match call(request).await {
        Ok(answer) => return read(|| Ok(answer.get()?.get_id())),
        Err(fault) => fault,
    };
    if let Fault::Exists(_) = fault {
        let tenants = node_commands::tenants(client).await?;
        let ours = |t: &&Value| t["name"] == name && t["holder"] == key.to_string();
        if let Some(id) = tenants.iter().find(ours).and_then(|t| t["id"].as_u64()) {
            return u32::try_from(id).map_err(Fault::internal);
        }
    }
    Err(fault)
}

/// The tenant's capability file: the operator's roots, attenuated and delegated offline to the
/// tenant's key (C1, C4).
fn delegated(holder: &Holder, tenant: &HolderSecret, terms: Terms) -> Result<CapFile, Fault> {
    let caveats = Caveats {
        quota_bytes: terms.quota_bytes,
        quota_tasks: terms.quota_tasks,
        ..terms.caveats()
    };
    let mut entries = Vec::new();
    let optional = holder.file.find(secret::ENTRY).map(|_| (secret::ENTRY, secrets_rights()));
    for (name, rights) in tenant_rights().into_iter().chain(optional) {
        let root = holder.file.find(name).ok_or_else(|| {
            named(&holder.path, Fault::malformed(format!("it has no '{name}' to delegate")))
        })?;
        let wanted = Authority { rights, caveats };
        let chain = root.chain.delegate(&holder.secret, tenant.key(), wanted, random()?)?;
        entries.push(CapEntry { name: name.to_owned(), chain });
    }
    Ok(CapFile { node: holder.file.node, sockets: holder.socket_hint(), entries })
}
