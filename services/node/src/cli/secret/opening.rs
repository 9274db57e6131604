//! How the broker comes to its root key, and how far it is: what operators do before anything is given out.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use distos_abi::{Fault, ObjectId};
use distos_delivery::Content;
use distos_schemas::secrets_capnp::broker_status;
use distos_secrets::shamir::{SHARE_BYTES, Share};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Broker, card, check_private, secret_bytes};
use crate::cli::holder::{call, read};
use crate::cli::{Context, Report, files};

/// What a share begins with as text.
const SHARE: &str = "distos-share-";

/// Arguments of `secret init`.
#[derive(Args)]
pub struct InitArgs {
    /// How many shares open it [default: 2]
    #[arg(long, value_name = "N", requires = "shares")]
    threshold: Option<u8>,
    /// How many there are [default: 3; with --tpm none]
    #[arg(long, value_name = "N")]
    shares: Option<u8>,
    /// Have the node's TPM open it at each start
    #[arg(long)]
    tpm: bool,
    /// Write each share to a file of its own and show none; once for each share
    #[arg(long = "share-to", value_name = "FILE")]
    share_to: Vec<PathBuf>,
}

impl InitArgs {
    /// How many shares open it, of how many; 0 of 0 if there are none.
    fn scheme(&self) -> (u8, u8) {
        match (self.shares, self.tpm) {
            (None, true) => (0, 0),
            (shares, _) => (self.threshold.unwrap_or(2), shares.unwrap_or(3)),
        }
    }
}

pub(super) async fn show(context: &Context) -> Result<Report, Fault> {
    let (_broker, client) = Broker::own(context).await?;
    let answer = call(client.status_request()).await?;
    let json = read(|| status_json(answer.get()?.get_status()?))?;
    Ok(Report { text: status_text(&json), json })
}

fn status_json(status: broker_status::Reader<'_>) -> capnp::Result<Value> {
    Ok(json!({
        "initialised": status.get_initialised(), "sealed": status.get_sealed(),
        "threshold": status.get_threshold(), "shares": status.get_shares(), "given": status.get_given(),
        "secrets": status.get_secrets(), "leases": status.get_leases(),
        "failing": status.get_failing()?.to_str()?,
        "tpm": status.get_tpm(), "why": status.get_why()?.to_str()?,
    }))
}

fn status_text(status: &Value) -> String {
    let kept = format!("{} secrets, {} leases", status["secrets"], status["leases"]);
    let failing = status["failing"].as_str().filter(|why| !why.is_empty());
    let shares = match status["shares"] == 0 {
        true => "it has no shares".to_owned(),
        false => {
            format!(
                "{} of the {} shares that open it are given",
                status["given"], status["threshold"]
            )
        }
    };
    let by_tpm = status["tpm"] == true;
    let why = status["why"].as_str().unwrap_or_default();
    let state = match (status["initialised"] == true, status["sealed"] == true) {
        (false, _) => "it has no root key: make one with `distos secret init`".to_owned(),
        (true, true) if by_tpm && why.is_empty() => {
            format!("sealed: the TPM is being asked to open it; {shares}; {kept}")
        }
        (true, true) if by_tpm => format!(
            "sealed: {why}; {shares}; {kept}\nopen it with shares (distos secret unseal) or, if what the node boots has not \
             changed, by the TPM (--tpm). After an update, have the TPM open it as the node is now (distos secret bind)"
        ),
        (true, true) => format!("sealed: {shares}; {kept}"),
        (true, false) if by_tpm => format!("open, and opened by the TPM at each start; {kept}"),
        (true, false) => format!("open; {kept}"),
    };
    match failing {
        Some(why) => format!("{state}\nnothing is given out: {why}"),
        None => state,
    }
}

pub(super) async fn init(context: &Context, args: InitArgs) -> Result<Report, Fault> {
    let (threshold, shares) = args.scheme();
    check_count(&args.share_to, shares)?;
    let (broker, client) = Broker::own(context).await?;
    let share_files = ShareFiles::create(&args.share_to)?;
    let mut request = client.init_request();
    let mut params = request.get();
    params.set_tpm(args.tpm);
    params.set_threshold(threshold);
    params.set_shares(shares);
    let recipient = broker.recipient(ObjectId::ROOT, params.init_to())?;
    let answer = call(request).await?;
    let opened = || -> Result<Vec<Zeroizing<String>>, Fault> {
        let parcels = read(|| {
            let parcels = answer.get()?.get_parcels()?;
            parcels.iter().map(|p| p.map(<[u8]>::to_vec)).collect::<capnp::Result<Vec<_>>>()
        })?;
        let mut lines = Vec::new();
        for (number, parcel) in (1..).zip(&parcels) {
            let content = Content::NewShare { number };
            let share = recipient.open(&broker.purpose(content), parcel)?;
            lines.push(line_of(&share));
        }
        Ok(lines)
    };
    let lines = opened().map_err(|why| shares_lost(&why))?;
    if !args.share_to.is_empty() {
        share_files.write(&lines).map_err(|why| shares_lost(&why))?;
        let paths: Vec<String> = args.share_to.iter().map(|p| p.display().to_string()).collect();
        let text = format!(
            "any {threshold} of the shares in these {shares} files open the broker (distos secret unseal): give each to another \
             operator, and keep none\n{}",
            paths.join("\n")
        );
        let json = json!({ "threshold": threshold, "share_files": paths, "tpm": args.tpm });
        return Ok(Report { json, text });
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
    let (all, once) = (lines.join("\n"), "They are shown once: give each to another operator");
    let text = match (args.tpm, lines.is_empty()) {
        (false, _) => format!(
            "{all}\nany {threshold} of these {shares} open the broker after each start (distos secret unseal). {once}"
        ),
        (true, false) => format!(
            "{all}\nthe TPM opens the broker at each start; where it does not, any {threshold} of these {shares} do \
             (distos secret unseal). {once}"
        ),
        (true, true) => "the TPM opens the broker at each start, and nothing else does: once the TPM is cleared, or the \
                         node's firmware or image has changed, what it keeps is lost. Shares (--shares) prevent that, until \
                         a secret is put"
            .to_owned(),
    };
    Ok(Report { json: json!({ "threshold": threshold, "shares": lines, "tpm": args.tpm }), text })
}

/// One file for each share, or none at all.
fn check_count(paths: &[PathBuf], shares: u8) -> Result<(), Fault> {
    let given = paths.len();
    if given > 0 && given != usize::from(shares) {
        return Err(Fault::malformed(format!("{shares} shares, and {given} files for them")));
    }
    Ok(())
}

/// What is true of a root key of which not every share is where it was to be.
fn shares_lost(why: &Fault) -> Fault {
    Fault::unavailable(
        0,
        format!(
            "the root key was made and not all shares could be written: {why}. Until a secret is put there may be another: run \
             `distos secret init` again before anything is put, and destroy what was written of these shares"
        ),
    )
}

/// Where shares are written. The files are made before there is anything to write: one that is there already, under whatever
/// name, or that cannot be made, is known while nothing is lost. Those that were not written to are removed.
struct ShareFiles(Vec<(PathBuf, File)>);

impl ShareFiles {
    /// Makes these, in directories that nobody else writes to.
    fn create(paths: &[PathBuf]) -> Result<ShareFiles, Fault> {
        let mut made = ShareFiles(Vec::new());
        for path in paths {
            check_private(path)?;
            let file = files::create_new(path)?;
            made.0.push((path.clone(), file));
        }
        Ok(made)
    }

    /// Writes a share to each, durably. Whatever comes of it, all files stay.
    fn write(mut self, lines: &[Zeroizing<String>]) -> Result<(), Fault> {
        let share_files = std::mem::take(&mut self.0);
        for ((path, mut file), line) in share_files.into_iter().zip(lines) {
            let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
            written.map_err(|e| files::io_fault(&path, &e))?;
            files::sync_directory_of(&path)?;
        }
        Ok(())
    }
}

impl Drop for ShareFiles {
    fn drop(&mut self) {
        for (path, _) in &self.0 {
            // Nothing is in it; whoever comes again is told that it is there.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A share as operators keep it.
fn line_of(share: &[u8]) -> Zeroizing<String> {
    let mut line = Zeroizing::new(String::with_capacity(SHARE.len() + 2 * share.len()));
    line.push_str(SHARE);
    for byte in share {
        for digit in [byte >> 4, byte & 15] {
            line.push(char::from_digit(digit.into(), 16).expect("half a byte is a digit"));
        }
    }
    line
}

pub(super) async fn bind(context: &Context) -> Result<Report, Fault> {
    let (_broker, client) = Broker::own(context).await?;
    call(client.bind_request()).await?;
    let text =
        "the TPM opens the broker at each start, as long as the node boots what it has booted now";
    Ok(Report { json: json!({ "tpm": true }), text: text.to_owned() })
}

pub(super) async fn unseal_by_tpm(context: &Context) -> Result<Report, Fault> {
    let (_broker, client) = Broker::own(context).await?;
    let answer = call(client.unseal_request()).await?;
    let json = read(|| status_json(answer.get()?.get_status()?))?;
    Ok(Report { text: status_text(&json), json })
}

/// A share from a file, as `init` printed it.
async fn share_of(path: PathBuf) -> Result<Share, Fault> {
    let most = SHARE.len() + 2 * SHARE_BYTES + 2;
    let text = secret_bytes(path.clone(), most).await?;
    let digits = text.trim_ascii().strip_prefix(SHARE.as_bytes());
    let mut bytes = Zeroizing::new([0; SHARE_BYTES]);
    let decoded = digits.and_then(|digits| hex::decode_to_slice(digits, &mut *bytes).ok());
    let none = || Fault::malformed(format!("{}: this is no share: copy it again", path.display()));
    decoded.ok_or_else(none)?;
    Share::decode(&*bytes)
}

pub(super) async fn unseal(context: &Context, shares: Vec<PathBuf>) -> Result<Report, Fault> {
    let (broker, client) = Broker::own(context).await?;
    let mut json = Value::Null;
    for path in shares {
        let share = share_of(path).await?;
        let parcel = broker.parcel(&card(&client).await?, Content::Share, &share.encode())?;
        let mut request = client.unseal_request();
        request.get().set_share(&parcel);
        let answer = call(request).await?;
        json = read(|| status_json(answer.get()?.get_status()?))?;
    }
    Ok(Report { text: status_text(&json), json })
}

pub(super) async fn close(context: &Context) -> Result<Report, Fault> {
    let (_broker, client) = Broker::own(context).await?;
    call(client.seal_request()).await?;
    let text = "sealed: nothing is given out until it is opened again (distos secret unseal), also after a restart".to_owned();
    Ok(Report { json: json!({ "sealed": true }), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_sees_what_to_do_next() {
        let status = |initialised, sealed, failing| {
            status_text(&json!({
                "initialised": initialised, "sealed": sealed, "threshold": 2, "given": 1,
                "secrets": 3, "leases": 4, "failing": failing, "shares": 3, "tpm": false, "why": "",
            }))
        };
        assert!(status(false, true, "").contains("distos secret init"));
        assert!(status(true, true, "").contains("1 of the 2 shares"));
        assert_eq!(status(true, false, ""), "open; 3 secrets, 4 leases");
        assert!(status(true, false, "the disk is full").contains("nothing is given out"));
        let refused = status_text(&json!({
            "initialised": true, "sealed": true, "threshold": 2, "given": 0, "shares": 3,
            "secrets": 3, "leases": 4, "failing": "", "tpm": true, "why": "the registers changed",
        }));
        assert!(refused.contains("the registers changed") && refused.contains("secret bind"));
    }

    #[test]
    fn a_root_key_that_a_tpm_opens_has_shares_only_if_they_are_asked_for() {
        let args = |threshold, shares, tpm| {
            InitArgs { threshold, shares, tpm, share_to: Vec::new() }.scheme()
        };
        assert_eq!(args(None, None, false), (2, 3));
        assert_eq!(args(None, None, true), (0, 0));
        assert_eq!(args(None, Some(5), true), (2, 5));
        assert_eq!(args(Some(3), Some(5), false), (3, 5));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_file_that_holds_no_share_is_told_by_name_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("share.txt");
        for text in ["", "hunter2", "distos-share-00", "distos-share-xyz"] {
            std::fs::write(&path, text).unwrap();
            let said = share_of(path.clone()).await.unwrap_err().to_string();
            assert!(said.contains("share.txt") && !said.contains("hunter2"), "{said}");
        }
    }
}
