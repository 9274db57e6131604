//! `image keygen`, `image sign`, `image verify` and `image trust`; and what `up` asks of an image's
//! signature before it reads the image.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use distos_abi::{Fault, HolderKey};
use distos_identity::{DetachedSignature, MAX_SIGNATURE_BYTES};
use distos_types::{HolderSecret, key_file_text, parse_key_file};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::cap::public_key;
use super::files::{self, io_fault};
use super::holder::{named, random, read_secret_file};
use super::text::{self, row};
use super::{Context, Report, up};
use crate::paths;
use crate::signature::{IMAGE, Pin, Trust};

/// The longest image file, in bytes.
pub(super) const MAX_IMAGE_BYTES: u64 = 1 << 20;
/// The file of a node's directory that names whose images the node takes.
pub const PIN: &str = "image-signer.pub";
/// The longest file of that name, in bytes: a public key.
const MAX_KEY_FILE_BYTES: u64 = 1024;
/// What an image's signature is called: the image's name with this behind it.
const SUFFIX: &str = ".sig";

/// Commands about signed images.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Make a key pair to sign images with
    #[command(after_help = "\
Example:
  distos image keygen signer.key
writes signer.key (the secret: whoever has it decides what your nodes run) and signer.pub (for
`distos up --signer` and `distos image trust`). It is an ordinary key pair, as tenants have them.")]
    Keygen(KeygenArgs),
    /// Sign an image: a node boots it only if it takes this key's images
    #[command(after_help = "\
Example:
  distos image sign images/single.toml --key signer.key
writes images/single.toml.sig")]
    Sign(SignArgs),
    /// Check an image's signature, and say whose it is
    #[command(after_help = "\
Example:
  distos image verify images/single.toml --key signer.pub
Without --key it says who signed, and not whether that is somebody to trust.")]
    Verify(VerifyArgs),
    /// List every path that an image allows, with what protects it; refuse one that lacks protection
    #[command(after_help = "\
Example:
  distos image check images/cluster.toml
Between services, the node and the outside: who can speak to whom over what, what says who is at the other
end, and what keeps others from reading along. Exit code 16 if the image is wrong or a path lacks either;
such an image does not boot. It needs no signature.")]
    Check(CheckArgs),
    /// Name whose images a node takes from its next boot on
    #[command(after_help = "\
Example:
  distos image trust signer.pub --node /srv/distos")]
    Trust(TrustArgs),
}

/// Arguments of `image check`.
#[derive(Args)]
pub struct CheckArgs {
    /// The image file
    image: PathBuf,
}

/// Arguments of `image keygen`.
#[derive(Args)]
pub struct KeygenArgs {
    /// The secret key file to make; the public key goes beside it, with the extension .pub
    file: PathBuf,
}

/// Arguments of `image sign`.
#[derive(Args)]
pub struct SignArgs {
    #[command(flatten)]
    signed: Signed,
    /// The secret key that signs
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Arguments of `image verify`.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    signed: Signed,
    /// Who must have signed: a public key file, or the key itself
    #[arg(long, value_name = "PUBFILE")]
    key: Option<String>,
}

/// Arguments of `image trust`.
#[derive(Args)]
pub struct TrustArgs {
    /// The signer: a public key file, or the key itself
    #[arg(value_name = "PUBFILE")]
    signer: String,
}

/// An image and where its signature is.
#[derive(Args, Clone)]
pub struct Signed {
    /// The image: which services there are and who is given what
    image: PathBuf,
    /// The image's signature [default: the image's name and .sig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// What to boot, and whose word for it counts.
#[derive(Args, Clone)]
pub struct Booting {
    #[command(flatten)]
    signed: Signed,
    /// Take images of this signer from now on: a public key file, or the key itself
    #[arg(long, value_name = "PUBFILE")]
    signer: Option<String>,
    /// Boot an image that nobody has signed, in a directory without a pinned signer
    #[arg(long, conflicts_with_all = ["signature", "signer"])]
    unsigned: bool,
}

impl Signed {
    /// The image with its signature in this file.
    pub fn at(image: &Path, signature: &Path) -> Signed {
        Signed { image: image.to_path_buf(), signature: Some(signature.to_path_buf()) }
    }

    fn signature(&self) -> PathBuf {
        self.signature.clone().unwrap_or_else(|| {
            let mut name = self.image.clone().into_os_string();
            name.push(SUFFIX);
            name.into()
        })
    }

    /// Signs the image as it stands in its file, and writes the signature.
    pub fn sign(&self, secret: &HolderSecret) -> Result<(), Fault> {
        let image = files::read_text(&self.image, MAX_IMAGE_BYTES)?;
        let signature = DetachedSignature::sign(IMAGE, image.as_bytes(), secret);
        files::write(&self.signature(), signature.to_text().as_bytes(), files::PUBLIC)
    }

    /// The image's text, and the key that signed exactly that.
    fn verified(&self) -> Result<(Zeroizing<String>, HolderKey), Fault> {
        let text = files::read_text(&self.image, MAX_IMAGE_BYTES)?;
        let (image, at) = (self.image.display(), self.signature());
        let signature =
            files::read_text(&at, MAX_SIGNATURE_BYTES as u64).map_err(|fault| match fault {
                Fault::NotFound(_) if self.signature.is_none() => Fault::Unauthenticated(format!(
                    "{image} is not signed: there is no {}; `distos image sign {image} --key FILE` \
                 makes it, `distos image keygen FILE` a key",
                    at.display()
                )),
                other => other,
            })?;
        let signature = DetachedSignature::parse(IMAGE, &signature).map_err(|f| named(&at, f))?;
        let signer = signature.verify(text.as_bytes()).map_err(|fault| {
            let at = at.display();
            let why =
                format!("{at} is no signature over {image}: one of them was changed: {fault}");
            Fault::Unauthenticated(why)
        })?;
        Ok((text, signer))
    }
}

/// An image whose signature was checked. Its text was read once: what is parsed is what was
/// verified.
pub struct Checked {
    /// The image's file, for messages.
    pub path: PathBuf,
    /// Its text.
    pub text: Zeroizing<String>,
    /// Who signed it; `None` if it was asked for unsigned.
    pub signer: Option<HolderKey>,
    named: Option<HolderKey>,
}

impl Booting {
    /// A signed image; the node is told to take images of `signer`, if there is one.
    pub fn signed(signed: Signed, signer: Option<HolderKey>) -> Booting {
        Booting { signed, signer: signer.map(|key| key.to_string()), unsigned: false }
    }

    /// The image with its signature beside it.
    pub fn of(image: &Path) -> Booting {
        let signed = Signed { image: image.to_path_buf(), signature: None };
        Booting::signed(signed, None)
    }

    /// Reads the image and checks its signature, if it is to have one.
    pub fn check(&self) -> Result<Checked, Fault> {
        let path = self.signed.image.clone();
        let named = self.signer.as_deref().map(public_key).transpose()?;
        let (text, signer) = if self.unsigned {
            (files::read_text(&path, MAX_IMAGE_BYTES)?, None)
        } else {
            let (text, signer) = self.signed.verified().map_err(|fault| match fault {
                Fault::Unauthenticated(why) if !self.signed.signature().exists() => {
                    Fault::Unauthenticated(format!(
                        "{why}; a directory without a pinned signer boots it with --unsigned"
                    ))
                }
                other => other,
            })?;
            (text, Some(signer))
        };
        Ok(Checked { path, text, signer, named })
    }

    /// The same as arguments of `up`, without the image.
    pub fn options(&self) -> Vec<std::ffi::OsString> {
        let mut options = Vec::new();
        if let Some(signature) = &self.signed.signature {
            options.extend(["--signature".into(), signature.into()]);
        }
        if let Some(signer) = &self.signer {
            options.extend(["--signer".into(), signer.into()]);
        }
        if self.unsigned {
            options.push("--unsigned".into());
        }
        options
    }

    /// The image's file.
    pub fn image(&self) -> &Path {
        &self.signed.image
    }
}

impl Checked {
    /// Whether the node in `directory` boots it; changes nothing.
    pub fn admit(&self, directory: &Path) -> Result<Pin, Fault> {
        let trust = trust(directory)?;
        match self.signer {
            Some(signer) => trust.admit(signer, self.named),
            None => trust.admit_unsigned(),
        }
    }

    /// The same, and pins the signer if it is to be. The caller holds the directory's lock.
    pub fn pin(&self, directory: &Path) -> Result<Pin, Fault> {
        let pin = self.admit(directory)?;
        if let (Pin::First | Pin::Named, Some(signer)) = (pin, self.signer) {
            write_pin(directory, signer)?;
        }
        Ok(pin)
    }
}

/// What the directory says about whose images it takes; it may not exist yet.
pub fn trust(directory: &Path) -> Result<Trust, Fault> {
    let path = directory.join(PIN);
    let pinned = match files::read_text(&path, MAX_KEY_FILE_BYTES) {
        Ok(text) => Some(parse_key_file(&text).map_err(|fault| {
            let again = "name the signer again with `distos image trust PUBFILE`";
            Fault::Corrupt(format!("{}: {fault}: {again}", path.display()))
        })?),
        Err(Fault::NotFound(_)) => None,
        Err(fault) => return Err(fault),
    };
    // Made by the first kernel that runs here, before its key and its journal.
    let kernel = directory.join("kernel");
    let booted = kernel.try_exists().map_err(|e| io_fault(&kernel, &e))?;
    Ok(Trust { pinned, booted })
}

/// Pins a signer, durably: whoever boots after a power cut finds it.
fn write_pin(directory: &Path, signer: HolderKey) -> Result<(), Fault> {
    files::write_durably(&directory.join(PIN), key_file_text(signer).as_bytes(), files::PUBLIC)
}

pub(super) async fn command(context: &Context, command: ImageCommand) -> Result<Report, Fault> {
    match command {
        ImageCommand::Keygen(args) => keygen(&args.file),
        ImageCommand::Sign(args) => sign(&args),
        ImageCommand::Verify(args) => verify(&args),
        ImageCommand::Check(args) => check(context.node(), &args.image),
        ImageCommand::Trust(args) => set_trust(context.node(), public_key(&args.signer)?),
    }
}

/// Makes a key pair; an existing file is never replaced.
pub fn new_key(file: &Path) -> Result<HolderSecret, Fault> {
    let secret = HolderSecret::from_seed(random()?);
    keep_key(file, &secret)?;
    Ok(secret)
}

/// Writes both halves of a new key pair; an existing file is never replaced.
pub fn keep_key(file: &Path, secret: &HolderSecret) -> Result<(), Fault> {
    let public = file.with_extension("pub");
    if public == file {
        let why = "name the secret key's file, such as signer.key: signer.pub is made beside it";
        return Err(Fault::malformed(format!("{}: {why}", file.display())));
    }
    for path in [file, &public] {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(Fault::Exists(format!("{}: a key is never replaced", path.display())));
        }
    }
    files::write(file, secret.to_file_text().as_bytes(), files::SECRET)?;
    files::write(&public, key_file_text(secret.key()).as_bytes(), files::PUBLIC)
}

fn keygen(file: &Path) -> Result<Report, Fault> {
    let key = new_key(file)?.key().to_string();
    let public = file.with_extension("pub").display().to_string();
    let secret = file.display();
    let text =
        format!("key {key}\n  {secret}  its secret half: keep it\n  {public}  its public half");
    let json = json!({ "key": key, "secret": secret.to_string(), "public": public });
    Ok(Report { json, text })
}

fn sign(args: &SignArgs) -> Result<Report, Fault> {
    let secret = read_secret_file(&args.key)?;
    args.signed.sign(&secret)?;
    // What was written is what the next reader finds.
    let (text, signer) = args.signed.verified()?;
    let json = signed_json(&args.signed, &text, signer);
    let (image, signature) = (args.signed.image.display(), args.signed.signature());
    let text = format!("{image} is signed by {signer}: {}", signature.display());
    Ok(Report { json, text })
}

fn verify(args: &VerifyArgs) -> Result<Report, Fault> {
    let key = args.key.as_deref().map(public_key).transpose()?;
    let (text, signer) = args.signed.verified()?;
    if let Some(key) = key.filter(|key| *key != signer) {
        let image = args.signed.image.display();
        let why = format!("{image} is signed by {signer}, and not by {key}");
        return Err(Fault::Unauthenticated(why));
    }
    let json = signed_json(&args.signed, &text, signer);
    let hash = json["image_hash"].as_str().unwrap_or_default();
    let said = format!("the signature is good\n  signer  {signer}\n  BLAKE3  {hash}");
    Ok(Report { text: said, json })
}

fn check(directory: &Path, image: &Path) -> Result<Report, Fault> {
    let text = files::read_text(image, MAX_IMAGE_BYTES)?;
    let plan = up::resolve(&text, image, directory)?;
    let paths = paths::checked(&plan).map_err(|lacking| {
        Fault::malformed(format!("{} has unprotected paths\n{lacking}", image.display()))
    })?;
    let mut rows = vec![row(["from", "to", "over", "who is there", "who can read"])];
    let mut json = Vec::new();
    for path in &paths {
        // Both are there: nothing else was let through.
        let (who, read) = (path.authenticated.unwrap_or("-"), path.encrypted.unwrap_or("-"));
        rows.push(row([&path.from, &path.to, &path.over, who, read]));
        json.push(json!({
            "from": path.from, "to": path.to, "over": path.over, "authenticated": who,
            "encrypted": read,
        }));
    }
    let text = format!(
        "{}\n{} paths, each authenticated and kept from others",
        text::table(&rows),
        paths.len()
    );
    Ok(Report { text, json: json!({ "image": plan.image, "paths": json }) })
}

fn signed_json(signed: &Signed, text: &str, signer: HolderKey) -> Value {
    json!({
        "image": signed.image.display().to_string(),
        "image_hash": blake3::hash(text.as_bytes()).to_hex().as_str(),
        "image_signer": signer.to_string(),
        "signature": signed.signature().display().to_string(),
    })
}

fn set_trust(directory: &Path, signer: HolderKey) -> Result<Report, Fault> {
    up::prepare_directory(directory)?;
    // A pin that cannot be read is what this command mends.
    let before = match trust(directory) {
        Ok(trust) => trust.pinned,
        Err(Fault::Corrupt(_)) => None,
        Err(fault) => return Err(fault),
    };
    write_pin(directory, signer)?;
    let at = directory.display();
    let mut text = format!("the node in {at} takes images of {signer} only, from its next boot on");
    if let Some(before) = before.filter(|before| *before != signer) {
        text += &format!("\nthose of {before} are refused");
    }
    let before = before.map(|key| key.to_string());
    Ok(Report { json: json!({ "signer": signer.to_string(), "before": before }), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path) -> Signed {
        let image = dir.join("x.toml");
        std::fs::write(&image, "image = { name = \"x\" }\n").unwrap();
        Signed { image, signature: None }
    }

    #[test]
    fn a_key_is_never_replaced_and_its_halves_do_not_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("signer.key");
        let secret = new_key(&file).unwrap();
        assert_eq!(read_secret_file(&file).unwrap().key(), secret.key());
        let public = file.with_extension("pub");
        assert_eq!(public_key(public.to_str().unwrap()), Ok(secret.key()));
        assert_eq!(new_key(&file).unwrap_err().code(), 19);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(new_key(&file).unwrap_err().code(), 19);
        assert_eq!(new_key(&dir.path().join("x.pub")).unwrap_err().code(), 16);
    }

    #[test]
    fn a_boot_tells_unsigned_from_badly_signed_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let signed = image(dir.path());
        let booting = Booting::signed(signed.clone(), None);
        let fault = booting.check().err().unwrap();
        assert_eq!(fault.code(), 22);
        for word in ["is not signed", "x.toml.sig", "image sign", "--unsigned"] {
            assert!(fault.to_string().contains(word), "{fault}");
        }
        signed.sign(&HolderSecret::from_seed([1; 32])).unwrap();
        assert!(booting.check().unwrap().signer.is_some());
        std::fs::write(&signed.image, "image = { name = \"y\" }\n").unwrap();
        let fault = booting.check().err().unwrap();
        assert_eq!(fault.code(), 22);
        assert!(fault.to_string().contains("one of them was changed"), "{fault}");
        std::fs::write(signed.signature(), "distos image signature v1\nsigner: x\n").unwrap();
        let fault = booting.check().err().unwrap();
        assert_eq!(fault.code(), 16);
        assert!(fault.to_string().contains("x.toml.sig: line 2"), "{fault}");
        assert_eq!(Booting { unsigned: true, ..booting }.check().unwrap().signer, None);
    }

    #[test]
    fn a_damaged_pin_admits_nobody_until_the_signer_is_named_again() {
        let dir = tempfile::tempdir().unwrap();
        let (node, signed) = (dir.path().join("node"), image(dir.path()));
        let secret = HolderSecret::from_seed([1; 32]);
        signed.sign(&secret).unwrap();
        let checked = Booting::signed(signed, None).check().unwrap();
        assert_eq!(checked.admit(&node), Ok(Pin::First));
        assert!(!node.exists(), "looking makes no directory");
        std::fs::create_dir(&node).unwrap();
        std::fs::write(node.join("VERSION"), "1\n").unwrap();
        assert_eq!(checked.pin(&node), Ok(Pin::First));
        assert_eq!(checked.pin(&node), Ok(Pin::Stays));
        std::fs::write(node.join(PIN), "distos holder key v1\n00").unwrap();
        let fault = checked.admit(&node).unwrap_err();
        assert!(fault.code() == 23 && fault.to_string().contains(PIN), "{fault}");
        set_trust(&node, secret.key()).unwrap();
        assert_eq!(checked.admit(&node), Ok(Pin::Stays));
    }
}
