//! `audit list` and `audit verify`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use distos_abi::{Fault, HolderKey};
use distos_audit::Checkpoint;
use distos_client::fault_of;
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
    #[command(after_help = "\
Examples:
  distos audit verify --json > checkpoint.json
  distos audit verify --dir copy-of-the-log --since checkpoint.json   # offline, trusting no node")]
    Verify {
        /// Read the log in this directory (DIR/vats/audit, or a copy) instead of asking a node
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// A checkpoint that was kept: the log must be a continuation of it
        #[arg(long, value_name = "FILE", requires = "dir")]
        since: Option<PathBuf>,
    },
}

pub(super) async fn command(context: &Context, command: AuditCommand) -> Result<Report, Fault> {
    match command {
        AuditCommand::List { from, tenant } => list(&context.holder()?, from, tenant).await,
        AuditCommand::Verify { dir: Some(dir), since } => {
            let since = since.map(|file| kept_checkpoint(&file)).transpose()?;
            let work = move || verify_offline(&dir, since);
            let verified = tokio::task::spawn_blocking(work).await.map_err(Fault::internal)??;
            Ok(Report { text: verified.text(), json: verified.0 })
        }
        AuditCommand::Verify { dir: None, .. } => {
            let verified = verify(&context.holder()?).await?;
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
        let file = v.get_bad_file()?.to_str()?.to_owned();
        let reason = v.get_reason()?.to_str()?.to_owned();
        let wrong = wrong(v.get_bad_index(), &file, v.get_bad_offset(), &reason);
        Ok((v.get_ok(), wrong, v.get_checkpoint().and_then(checkpoint_of)))
    })?;
    if !ok {
        return Err(wrong);
    }
    let checkpoint = checkpoint.map_err(|e| fault_of(&e))?;
    verified(&checkpoint)
}

/// Verifies a log that no service is writing, from its files alone. [`Fault::Corrupt`] tells where
/// it is wrong, or that it does not continue `since`.
fn verify_offline(dir: &Path, since: Option<Checkpoint>) -> Result<Verified, Fault> {
    let found = distos_audit::verify_dir(dir, since);
    match (found.damage, found.checkpoint) {
        (None, Some(checkpoint)) => verified(&checkpoint),
        (Some(damage), _) => Err(wrong(damage.index, &damage.file, damage.offset, &damage.reason)),
        (None, None) => Err(Fault::internal("verification found nothing")),
    }
}

fn verified(checkpoint: &Checkpoint) -> Result<Verified, Fault> {
    checkpoint.verify()?;
    Ok(Verified(json!({ "ok": true, "checkpoint": checkpoint_json(checkpoint) })))
}

fn wrong(index: u64, file: &str, offset: u64, reason: &str) -> Fault {
    Fault::Corrupt(format!(
        "the audit log is wrong at entry {index}, {file} byte {offset}: {reason}"
    ))
}

fn checkpoint_of(from: checkpoint::Reader<'_>) -> capnp::Result<Checkpoint> {
    let malformed = |what: &str| capnp::Error::failed(format!("a checkpoint's {what}"));
    Ok(Checkpoint {
        size: from.get_size(),
        head: from.get_head()?.try_into().map_err(|_| malformed("head"))?,
        time_ms: from.get_time_ms(),
        key: HolderKey::try_from(from.get_key()?).map_err(|_| malformed("key"))?,
        signature: from.get_signature()?.try_into().map_err(|_| malformed("signature"))?,
    })
}

fn checkpoint_json(checkpoint: &Checkpoint) -> Value {
    json!({
        "size": checkpoint.size, "head": hex::encode(checkpoint.head),
        "time_ms": checkpoint.time_ms, "key": checkpoint.key.to_string(),
        "signature": hex::encode(checkpoint.signature),
    })
}

/// Reads what `audit verify --json` printed.
fn kept_checkpoint(file: &Path) -> Result<Checkpoint, Fault> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Fault::not_found(format!("{}: {e}", file.display())))?;
    let broken = || {
        let file = file.display();
        Fault::malformed(format!("{file} is not what `distos audit verify --json` prints"))
    };
    let value: Value = serde_json::from_str(&text).map_err(|_| broken())?;
    let from = &value["checkpoint"];
    let mut checkpoint = Checkpoint {
        size: from["size"].as_u64().ok_or_else(broken)?,
        head: [0; 32],
        time_ms: from["time_ms"].as_u64().ok_or_else(broken)?,
        key: HolderKey([0; 32]),
        signature: [0; 64],
    };
    let bytes = |key: &str, into: &mut [u8]| {
        let text = from[key].as_str().ok_or_else(broken)?;
        hex::decode_to_slice(text, into).map_err(|_| broken())
    };
    bytes("head", &mut checkpoint.head)?;
    bytes("key", &mut checkpoint.key.0)?;
    bytes("signature", &mut checkpoint.signature)?;
    Ok(checkpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_was_kept_is_read_back_and_a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("checkpoint.json");
        let checkpoint = Checkpoint {
            size: 7,
            head: [5; 32],
            time_ms: 9,
            key: HolderKey([3; 32]),
            signature: [4; 64],
        };
        let printed = json!({ "ok": true, "checkpoint": checkpoint_json(&checkpoint) });
        std::fs::write(&file, printed.to_string()).unwrap();
        assert!(kept_checkpoint(&file).unwrap() == checkpoint);
        assert_eq!(checkpoint.verify().unwrap_err().code(), 22);
        for broken in ["", "{}", "{\"checkpoint\":{\"size\":1,\"time_ms\":1,\"head\":\"00\"}}"] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(kept_checkpoint(&file).unwrap_err().code(), 16, "{broken}");
        }
    }
}
