//! How a node comes into a cluster by invitation: `network challenge`, `present`, `invite` and `accept`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use distos_abi::{Fault, HolderKey, NodeId};
use distos_evidence::credential::{EndorsementKey, is_name_long};
use distos_evidence::enrolment::{Kind, MAX_PINNED_BYTES, Makers};
use distos_evidence::evidence::{PcrSet, extended_once};
use distos_evidence::joining::{
    Challenge, IMAGE_PCR, MAX_REQUEST_BYTES, MAX_SEALED_BYTES, Request, Sealed,
};
use distos_evidence::pki::Certificate;
use distos_identity::{Bundle, Home, Identity, Invitation, MAX_INVITATION_BYTES, Peer, Usage};
use distos_schemas::network_capnp::network;
use serde_json::json;

use super::cap::public_key;
use super::holder::{Holder, call, named, now_ms, read};
use super::image::MAX_IMAGE_BYTES;
use super::network::{join, status_json};
use super::{Report, attest, files, text};

/// Arguments of `network invite`.
#[derive(Args)]
pub struct InviteArgs {
    /// The node that is to join: node/N
    #[arg(value_name = "NODE", required_unless_present = "request", conflicts_with = "request")]
    whom: Option<Peer>,
    /// The key that `distos network status` shows there
    #[arg(value_name = "KEY", required_unless_present = "request", conflicts_with = "request")]
    key: Option<String>,
    /// What the node has presented (`distos network present`): it is invited by its TPM
    #[arg(long, value_name = "FILE", requires = "image")]
    request: Option<PathBuf>,
    /// The name of its TPM's endorsement key, as `distos attest identity` shows it there
    #[arg(long, value_name = "NAME", requires = "request")]
    tpm: Option<String>,
    /// Take any TPM whose certificate leads to a root in this folder, which holds the certificates of makers of hardware
    /// TPMs, lists of what they have revoked (PEM or DER), and OCSP responses (DER). With --tpm, both must hold
    #[arg(long, value_name = "DIR", requires = "request")]
    tpm_roots: Option<PathBuf>,
    /// The same for software TPMs, which show nothing of the machine that they run on
    #[arg(long, value_name = "DIR", requires = "request")]
    software_tpm_roots: Option<PathBuf>,
    /// The image that it is booted from: its file, or BLAKE3 of that
    #[arg(long, value_name = "IMAGE", requires = "request")]
    image: Option<String>,
    /// What another register of the TPM holds: N=HEX. Those that are not named are told, and decide nothing
    #[arg(long = "pcr", value_name = "N=HEX", requires = "request", value_parser = parse_register)]
    registers: Vec<(u8, [u8; 32])>,
    /// Where this node's network service is reached, as HOST:PORT in numbers
    #[arg(long = "at", value_name = "ADDRESS")]
    address: SocketAddr,
    /// How long it may take to come: a day at most
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = text::parse_span_ms)]
    lasting: u64,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "invitation.json")]
    out: PathBuf,
}

/// Arguments of `network challenge`.
#[derive(Args)]
pub struct ChallengeArgs {
    /// The node that is to join: node/N
    #[arg(value_name = "NODE")]
    whom: Peer,
    /// How long it may take to answer: a day at most
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = text::parse_span_ms)]
    lasting: u64,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "challenge.json")]
    out: PathBuf,
}

/// Arguments of `network present`.
#[derive(Args)]
pub struct PresentArgs {
    /// The challenge
    challenge: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "request.json")]
    out: PathBuf,
}

/// Arguments of `network accept`.
#[derive(Args)]
pub struct AcceptArgs {
    /// The invitation
    invitation: PathBuf,
    /// A root of the cluster: its public key's file, or the key itself
    #[arg(long, value_name = "PUBFILE")]
    root: Vec<String>,
    /// Take whatever root the invitation names
    #[arg(long, conflicts_with = "root")]
    trust_first_use: bool,
}

/// Where a node is to come to that is invited.
fn own_address(address: SocketAddr) -> Result<SocketAddr, Fault> {
    if address.ip().is_unspecified() {
        let why = "--at is where the other node reaches this one, and 0.0.0.0 is everywhere";
        return Err(Fault::malformed(why));
    }
    Ok(address)
}

fn node_of(whom: &Peer) -> Result<NodeId, Fault> {
    match whom {
        Peer::Node(node) => Ok(*node),
        Peer::Tenant(_) => {
            Err(Fault::malformed("only nodes join: let a tenant in with `distos peers add`"))
        }
    }
}

pub(super) async fn challenge(
    client: &network::Client,
    args: &ChallengeArgs,
) -> Result<Report, Fault> {
    let node = node_of(&args.whom)?;
    let answer = call(client.status_request()).await?;
    let inviter = read(|| Ok(answer.get()?.get_status()?.get_node()?.to_vec()))?;
    let inviter = NodeId::try_from(&inviter[..])?;
    let mut request = client.challenge_request();
    request.get().set_node(&node.0);
    request.get().set_lifetime_s(u32::try_from(args.lasting / 1000).unwrap_or(u32::MAX));
    let answer = call(request).await?;
    let nonce = read(|| Ok(answer.get()?.get_nonce()?.to_vec()))?;
    let nonce: [u8; 32] = nonce.try_into().map_err(|_| Fault::malformed("a nonce has 32 bytes"))?;
    let challenge = Challenge { inviter, node, nonce };
    files::write(&args.out, challenge.to_json()?.as_bytes(), files::PUBLIC)?;
    let (at, node) = (args.out.display().to_string(), args.whom.to_string());
    let text =
        format!("{node} is to answer this\n  {at}  take it there, to `distos network present`");
    Ok(Report { text, json: json!({ "challenged": node, "file": at }) })
}

pub(super) async fn present(
    holder: &Holder,
    client: &network::Client,
    args: &PresentArgs,
) -> Result<Report, Fault> {
    let text = files::read_text(&args.challenge, MAX_REQUEST_BYTES as u64)?;
    let challenge = Challenge::parse(&text).map_err(|fault| named(&args.challenge, fault))?;
    let answer = call(client.status_request()).await?;
    let (node, key) = read(|| {
        let status = answer.get()?.get_status()?;
        Ok((status.get_node()?.to_vec(), status.get_key()?.to_vec()))
    })?;
    let (node, key) = (NodeId::try_from(&node[..])?, HolderKey::try_from(&key[..])?);
    if challenge.node != node {
        let whom = Peer::Node(challenge.node);
        return Err(Fault::malformed(format!(
            "this challenge is for {whom}, and this is node/{node}"
        )));
    }
    let request = attest::present(holder, &challenge, key).await?;
    files::write(&args.out, request.as_bytes(), files::PUBLIC)?;
    let (at, inviter) = (args.out.display().to_string(), Peer::Node(challenge.inviter).to_string());
    let text = format!(
        "this node's TPM has answered {inviter}\n  {at}  take it there, to `distos network invite`"
    );
    Ok(Report { text, json: json!({ "for": inviter, "file": at }) })
}

pub(super) async fn invite(client: &network::Client, args: &InviteArgs) -> Result<Report, Fault> {
    let address = own_address(args.address)?;
    let lifetime_s = u32::try_from(args.lasting / 1000).unwrap_or(u32::MAX);
    if let Some(request) = &args.request {
        return invite_attested(client, args, request, lifetime_s).await;
    }
    // One goes without the other only with a request.
    let (Some(whom), Some(key)) = (&args.whom, &args.key) else {
        return Err(Fault::malformed("name the node and its key"));
    };
    let (node, key) = (node_of(whom)?, public_key(key)?);
    let answer = call(client.status_request()).await?;
    let own = read(|| status_json(answer.get()?.get_status()?))?;
    let mut request = client.invite_request();
    let mut asked = request.get();
    asked.set_node(&node.0);
    asked.set_key(&key.0);
    asked.set_lifetime_s(lifetime_s);
    let answer = call(request).await?;
    let (bundle, chain) = read(|| {
        let answer = answer.get()?;
        let chain = answer.get_chain()?.iter().map(|one| one.map(<[u8]>::to_vec));
        Ok((answer.get_bundle()?.to_str()?.to_owned(), chain.collect::<capnp::Result<Vec<_>>>()?))
    })?;
    let bundle = Bundle::parse(&bundle)?;
    let from = format!("node/{}", own["node"].as_str().unwrap_or_default()).parse()?;
    let invitation = Invitation { from, address, bundle, chain };
    files::write(&args.out, invitation.to_json()?.as_bytes(), files::PUBLIC)?;
    let (at, node) = (args.out.display().to_string(), whom.to_string());
    let text = format!("{node} may come, with key {key}\n  {at}  take it there");
    Ok(Report { text, json: json!({ "invited": node, "key": key.to_string(), "file": at }) })
}

async fn invite_attested(
    client: &network::Client,
    args: &InviteArgs,
    path: &Path,
    lifetime_s: u32,
) -> Result<Report, Fault> {
    let Some(image) = &args.image else {
        return Err(Fault::malformed("say which image is expected: --image"));
    };
    let makers = makers(args)?;
    if args.tpm.is_none() && makers.is_empty() {
        let why = "say which TPM is expected (--tpm), or whose (--tpm-roots, --software-tpm-roots)";
        return Err(Fault::malformed(why));
    }
    let text = files::read_text(path, MAX_REQUEST_BYTES as u64)?;
    let presented = Request::parse(&text).map_err(|fault| named(path, fault))?;
    let ek = args.tpm.as_ref().map(hex::decode).transpose();
    let ek = ek.ok().filter(|ek| ek.as_ref().is_none_or(|ek| is_name_long(ek.len())));
    let ek = ek.ok_or_else(|| Fault::malformed("a TPM's name is 68 or 100 hexadecimal digits"))?;
    let mut references = BTreeMap::new();
    for (pcr, value) in &args.registers {
        if *pcr == IMAGE_PCR {
            return Err(Fault::malformed("PCR 11 is the image's: --image says what it holds"));
        }
        if references.insert(*pcr, *value).is_some() {
            return Err(Fault::malformed(format!("PCR {pcr} is named twice")));
        }
    }
    references.insert(IMAGE_PCR, extended_once(&image_hash(image)?));
    let mut request = client.invite_attested_request();
    let mut asked = request.get();
    asked.set_request(&text);
    asked.set_ek(ek.as_deref().unwrap_or_default());
    let of = |kind| makers.certificates(kind).map(Certificate::der).collect::<Vec<_>>();
    let (hardware, software) = (of(Kind::Hardware), of(Kind::Software));
    let revoked: Vec<&[u8]> = makers.taken_back().collect();
    write_each(asked.reborrow().init_hardware_makers(hardware.len() as u32), &hardware);
    write_each(asked.reborrow().init_software_makers(software.len() as u32), &software);
    write_each(asked.reborrow().init_revoked(revoked.len() as u32), &revoked);
    asked.set_address(args.address.to_string());
    asked.set_lifetime_s(lifetime_s);
    let mut list = asked.init_references(references.len() as u32);
    for (index, (pcr, value)) in (0..).zip(&references) {
        let mut one = list.reborrow().get(index);
        one.set_pcr(*pcr);
        one.set_value(value);
    }
    let answer = call(request).await?;
    let (sealed, shown, registers) = read(|| {
        let answer = answer.get()?;
        let registers = answer.get_registers()?.iter();
        let registers =
            registers.map(|one| Ok((one.get_pcr().to_string(), hex::encode(one.get_value()?))));
        let registers = registers.collect::<capnp::Result<BTreeMap<_, _>>>()?;
        let shown = answer.get_tpm()?.to_str()?.to_owned();
        Ok((answer.get_sealed()?.to_str()?.to_owned(), shown, registers))
    })?;
    files::write(&args.out, sealed.as_bytes(), files::PUBLIC)?;
    let (at, node) = (args.out.display().to_string(), Peer::Node(presented.node).to_string());
    let key = presented.key.to_string();
    let unnamed = registers.keys().filter(|pcr| !references.keys().any(|n| n.to_string() == **pcr));
    let unnamed: Vec<&str> = unnamed.map(String::as_str).collect();
    // The service has admitted it, so it is one.
    let tpm = EndorsementKey::from_public(&presented.ek)?.name();
    let tpm = hex::encode(tpm);
    let mut text = format!(
        "{node} may come, with key {key}, if it has TPM {}…\n  {at}  take it there",
        text::short(&tpm)
    );
    if !shown.is_empty() {
        text += &format!("\ncertified: {shown}");
    }
    if !unnamed.is_empty() {
        text += &format!("\nnot compared with anything: PCR {}", unnamed.join(", "));
    }
    let json = json!({
        "invited": node, "key": key, "file": at, "tpm": tpm, "certified": shown, "pcrs": registers,
    });
    Ok(Report { text, json })
}

/// Whose TPMs are taken by their certificates.
fn makers(args: &InviteArgs) -> Result<Makers, Fault> {
    let mut makers = Makers::default();
    for (kind, folder) in
        [(Kind::Hardware, &args.tpm_roots), (Kind::Software, &args.software_tpm_roots)]
    {
        let Some(folder) = folder else { continue };
        let entries = fs::read_dir(folder).map_err(|e| files::io_fault(folder, &e))?;
        let mut roots = 0;
        for entry in entries {
            let path = entry.map_err(|e| files::io_fault(folder, &e))?.path();
            let bytes = files::read_bytes(&path, MAX_PINNED_BYTES as u64)?;
            roots += makers.add(kind, &bytes).map_err(|fault| named(&path, fault))?;
        }
        if roots == 0 {
            let why = "no certificate in it names itself as its issuer: there is no root";
            return Err(named(folder, Fault::malformed(why)));
        }
    }
    Ok(makers)
}

fn write_each(mut list: capnp::data_list::Builder<'_>, all: &[&[u8]]) {
    for (index, one) in (0..).zip(all) {
        list.set(index, one);
    }
}

/// BLAKE3 of an image: as such, or of the file that it is in.
fn image_hash(image: &str) -> Result<[u8; 32], Fault> {
    let mut hash = [0; 32];
    if hex::decode_to_slice(image, &mut hash).is_ok() {
        return Ok(hash);
    }
    let text = files::read_text(Path::new(image), MAX_IMAGE_BYTES)?;
    Ok(*blake3::hash(text.as_bytes()).as_bytes())
}

fn parse_register(text: &str) -> Result<(u8, [u8; 32]), String> {
    let wrong = || "a register is N=HEX, with 64 hexadecimal digits".to_owned();
    let (pcr, value) = text.split_once('=').ok_or_else(wrong)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(value, &mut bytes).map_err(|_| wrong())?;
    let pcr = pcr.parse().ok().filter(|pcr| *pcr < PcrSet::COUNT);
    Ok((pcr.ok_or("a TPM's registers are 0 to 23")?, bytes))
}

pub(super) async fn accept(
    holder: &Holder,
    client: &network::Client,
    args: &AcceptArgs,
) -> Result<Report, Fault> {
    let most = MAX_INVITATION_BYTES.max(MAX_SEALED_BYTES) as u64;
    let mut text = files::read_text(&args.invitation, most)?;
    if Sealed::is_one(&text) {
        let sealed = Sealed::parse(&text).map_err(|fault| named(&args.invitation, fault))?;
        let answer = call(client.status_request()).await?;
        let node = read(|| Ok(answer.get()?.get_status()?.get_node()?.to_vec()))?;
        if node != sealed.node.0 {
            let whom = Peer::Node(sealed.node);
            let why = format!("this invitation is for {whom}, and for another TPM");
            return Err(named(&args.invitation, Fault::Unauthenticated(why)));
        }
        let opened = attest::open(holder, &text).await;
        text = opened.map_err(|fault| named(&args.invitation, fault))?.into();
    }
    let invitation = Invitation::parse(&text).map_err(|fault| named(&args.invitation, fault))?;
    let bundle = &invitation.bundle;
    let known = args.root.iter().map(|root| public_key(root)).collect::<Result<Vec<_>, _>>()?;
    // One root more would be somebody else's, who could then be anybody in this cluster.
    let known = args.trust_first_use || bundle.keys().all(|key| known.contains(&key));
    if !known {
        let roots: Vec<String> = bundle.keys().map(|key| key.to_string()).collect();
        return Err(Fault::Unauthenticated(format!(
            "this invitation is into cluster {} with root {}: if that is the one, say so with \
             --root, or with --trust-first-use if you have nothing to compare it with",
            bundle.cluster(),
            roots.join(", ")
        )));
    }
    // Who invites is the node whose issuer signed: it could else be anybody in the cluster.
    let signed = Identity::verify(&invitation.chain, bundle, now_ms() / 1000, Usage::Client)?;
    let inviting = match (&invitation.from, signed.home) {
        (Peer::Node(node), Home::Node(home)) if *node == home => &invitation.from,
        (from, home) => {
            let why = format!("this invitation is by {from}, and signed by an issuer on {home}");
            return Err(named(&args.invitation, Fault::Unauthenticated(why)));
        }
    };
    let report = join(client, &bundle.to_json(), &invitation.chain).await?;
    let mut request = client.add_peer_request();
    let mut asked = request.get().init_peer();
    asked.set_name(inviting.to_string());
    asked.set_address(invitation.address.to_string());
    call(request).await?;
    let text = format!("{}\n{inviting} is let in, and asked for SVIDs", report.text);
    Ok(Report { text, json: report.json })
}
