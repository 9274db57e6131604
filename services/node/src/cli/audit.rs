//! `audit list` and `audit verify`.

use clap::Subcommand;
use distos_abi::{Fault, HolderKey};
use distos_schemas::audit_capnp::{checkpoint, entry, log};
use distos_schemas::node_capnp::node;
use serde_json::{Value, json};

use super::holder::{Holder, call, read};
use super::text::{self, row};
use super::{Context, Report, node as node_commands};

/// Entries per call.
const BATCH: u32 = 1024;
/// The most that one `audit list` shows.
const MAX_LISTED: usize = 100_000;
const CHECKPOINT_DOMAIN: &[u8] = b"distos-checkpoint-v1";

/// Commands about the audit log.
#[derive(Subcommand)]
pub enum AuditCommand {
    /// Who did what, by whose authority
    #[command(
        after_help = "Examples:\n  distos audit list\n  distos audit list --tenant red --json | jq .[].kind"
    )]
    List {
        /// First entry to show
        #[arg(long, default_value_t = 0, value_name = "N")]
        from: u64,
        /// Only this tenant's entries
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Check the stored log from its first to its last entry
    #[command(after_help = "Example:\n  distos audit verify")]
    Verify,
}

pub(super) async fn command(context: &Context, command: AuditCommand) -> Result<Report, Fault> {
    let holder = context.holder()?;
    match command {
        AuditCommand::List { from, tenant } => list(&holder, from, tenant).await,
        AuditCommand::Verify => {
            let verified = verify(&holder).await?;
            Ok(Report { text: verified.text(), json: verified.0 })
        }
    }
}

async fn list(holder: &Holder, from: u64, tenant: Option<String>) -> Result<Report, Fault> {
    let only = match &tenant {
        Some(name) => Some(tenant_id(holder, name).await?),
        None => None,
    };
    let mut entries = entries(holder, from).await?;
    entries.retain(|e| only.is_none_or(|id| e["tenant"] == id));
    let mut rows = vec![row(["entry", "time", "kind", "service", "tenant", "capability", "what"])];
    for e in &entries {
        let lineage = e["lineage"].as_array().map(Vec::as_slice).unwrap_or_default();
        let lineage: Vec<String> = lineage.iter().map(Value::to_string).collect();
        rows.push(row([
            &e["index"].to_string(),
            &text::instant(e["time_ms"].as_u64().unwrap_or(0)),
            e["kind"].as_str().unwrap_or_default(),
            e["vat"].as_str().unwrap_or_default(),
            &e["tenant"].to_string(),
            &if lineage.is_empty() { e["cap_id"].to_string() } else { lineage.join("→") },
            e["detail"].as_str().unwrap_or_default(),
        ]));
    }
    Ok(Report { text: text::table(&rows), json: Value::Array(entries) })
}

async fn tenant_id(holder: &Holder, name: &str) -> Result<u64, Fault> {
    let client: node::Client = holder.root("node").await?;
    let tenants = node_commands::tenants(&client).await?;
    let found = tenants.iter().find(|t| t["name"] == name).and_then(|t| t["id"].as_u64());
    found.ok_or_else(|| Fault::not_found(format!("tenant '{name}'")))
}

/// The log's entries from number `from` on, once everything that happened before is in it.
pub async fn entries(holder: &Holder, from: u64) -> Result<Vec<Value>, Fault> {
    let client: log::Client = holder.root("log").await?;
    flush(&client).await?;
    let (mut all, mut next) = (Vec::new(), from);
    while all.len() < MAX_LISTED {
        let mut request = client.entries_request();
        request.get().set_from(next);
        request.get().set_max(BATCH);
        let answer = call(request).await?;
        let batch: Vec<Value> =
            read(|| answer.get()?.get_entries()?.iter().map(entry_json).collect())?;
        if batch.is_empty() {
            break;
        }
        next += batch.len() as u64;
        all.extend(batch);
    }
    Ok(all)
}

async fn flush(client: &log::Client) -> Result<(), Fault> {
    let mut request = client.flush_request();
    request.get().set_up_to(0);
    call(request).await.map(|_| ())
}

fn entry_json(entry: entry::Reader<'_>) -> capnp::Result<Value> {
    let record = entry.get_record()?;
    let lineage: Vec<u64> = record.get_lineage()?.iter().collect();
    Ok(json!({
        "index": entry.get_index(), "seq": record.get_seq(), "time_ms": record.get_time_ms(),
        "kind": record.get_kind()?.to_str()?, "vat": record.get_vat()?.to_str()?,
        "tenant": record.get_tenant(), "holder": hex::encode(record.get_holder()?),
        "cap_id": record.get_cap_id(), "lineage": lineage,
        "detail": record.get_detail()?.to_str()?, "hash": hex::encode(entry.get_hash()?),
    }))
}

/// What verification found, as JSON: the log is whole and its checkpoint's signature is right.
pub struct Verified(pub Value);

impl Verified {
    /// For people.
    pub fn text(&self) -> String {
        let c = &self.0["checkpoint"];
        let word = |key: &str| c[key].as_str().unwrap_or_default().to_owned();
        format!(
            "the log is whole: {} entries, each hash and signature checked\n\
             checkpoint\n  size      {}\n  head      {}\n  time      {}\n  key       {}\n  signature {} (checked)",
            c["size"],
            c["size"],
            word("head"),
            text::instant(c["time_ms"].as_u64().unwrap_or(0)),
            word("key"),
            word("signature"),
        )
    }
}

/// Has the log verified from its first to its last entry, and checks the checkpoint's signature
/// here. [`Fault::Corrupt`] tells where the log is wrong (L1).
pub async fn verify(holder: &Holder) -> Result<Verified, Fault> {
    let client: log::Client = holder.root("log").await?;
    flush(&client).await?;
    let answer = call(client.verify_request()).await?;
    let (ok, wrong, checkpoint) = read(|| {
        let v = answer.get()?.get_verification()?;
        let wrong = format!(
            "the audit log is wrong at entry {}, {} byte {}: {}",
            v.get_bad_index(),
            v.get_bad_file()?.to_str()?,
            v.get_bad_offset(),
            v.get_reason()?.to_str()?
        );
        Ok((v.get_ok(), wrong, Checkpoint::of(v.get_checkpoint()?)?))
    })?;
    if !ok {
        return Err(Fault::Corrupt(wrong));
    }
    checkpoint.check()?;
    Ok(Verified(json!({ "ok": true, "checkpoint": checkpoint.json() })))
}

struct Checkpoint {
    size: u64,
    head: Vec<u8>,
    time_ms: u64,
    key: Vec<u8>,
    signature: Vec<u8>,
}

impl Checkpoint {
    fn of(from: checkpoint::Reader<'_>) -> capnp::Result<Checkpoint> {
        Ok(Checkpoint {
            size: from.get_size(),
            head: from.get_head()?.to_vec(),
            time_ms: from.get_time_ms(),
            key: from.get_key()?.to_vec(),
            signature: from.get_signature()?.to_vec(),
        })
    }

    /// Fails with [`Fault::Unauthenticated`] if the signature does not cover these values.
    fn check(&self) -> Result<(), Fault> {
        let key = HolderKey::try_from(self.key.as_slice())?;
        let size = self.size.to_le_bytes();
        let time = self.time_ms.to_le_bytes();
        let message = [CHECKPOINT_DOMAIN, &size, &time, &self.head].concat();
        distos_types::verify_signature(key, &message, &self.signature)
    }

    fn json(&self) -> Value {
        json!({
            "size": self.size, "head": hex::encode(&self.head), "time_ms": self.time_ms,
            "key": hex::encode(&self.key), "signature": hex::encode(&self.signature),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_types::HolderSecret;

    #[test]
    fn a_checkpoint_with_another_size_or_head_is_refused() {
        let secret = HolderSecret::from_seed([3; 32]);
        let message =
            [CHECKPOINT_DOMAIN, &7u64.to_le_bytes(), &9u64.to_le_bytes(), &[5; 32]].concat();
        let mut checkpoint = Checkpoint {
            size: 7,
            head: vec![5; 32],
            time_ms: 9,
            key: secret.key().0.to_vec(),
            signature: secret.sign(&message).to_vec(),
        };
        assert_eq!(checkpoint.check(), Ok(()));
        checkpoint.size = 8;
        assert_eq!(checkpoint.check().unwrap_err().code(), 22);
        checkpoint.size = 7;
        checkpoint.head[0] ^= 1;
        assert!(checkpoint.check().is_err());
        checkpoint.key.pop();
        assert!(checkpoint.check().is_err());
    }
}
