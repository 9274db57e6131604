//! `demo`: the whole main job on real input, step by step, each step checked. Every step calls
//! what the command of that name calls.

mod nodes;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use capnp::capability::FromClientHook;
use clap::Args;
use distos_abi::Fault;
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::region;
use distos_types::{CapFile, Chain};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use self::nodes::Place;
use super::cap::{self, Weaker};
use super::files::{self, Input, io_fault};
use super::holder::{Holder, call, now_ms, read_cap_file, read_secret_file};
use super::image::{self, Booting, Signed};
use super::run::{self, Job, Limits};
use super::tenant::{self, Terms};
use super::text::{self, PAGE_BYTES};
use super::up;
use super::{
    Context, Report, Stop, attest, audit, interruptible, operator, region as regions, say,
};

/// The region that Red stores its text in.
const REGION: &str = "demo-text";
/// How long Blue may read Red's page.
const LENT_MS: u64 = 60_000;
/// Kinds of audit records that the steps must have left behind.
const EXPECTED: [&str; 6] = ["image", "tenant", "attestation", "placement", "denial", "revoke"];

/// The most nodes: each has its own services, on this one machine.
const MAX_NODES: usize = 8;

fn node_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_NODES).contains(count));
    count.ok_or_else(|| format!("1 to {MAX_NODES}"))
}

/// Arguments of `demo`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  distos demo
  distos demo --input ~/books --node /srv/demo
  distos demo --nodes 3

With --nodes, the nodes are processes of this machine on loopback addresses, below DIR.

Uses the node that runs in --node DIR, or else boots one there and shuts it down at the end. The
image is signed with a key that the demo makes in DIR/operator, unless DIR takes the images of
somebody else: then it has to be signed as for `distos up`.")]
pub struct DemoArgs {
    /// The text to count: a file, or every file below a directory
    #[arg(long, default_value = "/usr/share/common-licenses", value_name = "PATH")]
    input: PathBuf,
    /// The program that counts
    #[arg(long, default_value = "target/wasm/wordcount.wasm", value_name = "FILE")]
    module: PathBuf,
    /// The image to boot [default: images/single.toml; with --nodes, images/cluster.toml]
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// How many nodes: with three, red's text is at the first, the second computes, the third keeps the result
    #[arg(long, default_value_t = 1, value_parser = node_count, value_name = "N")]
    nodes: usize,
}

pub(super) async fn command(context: &Context, args: DemoArgs) -> Result<Report, Stop> {
    // What cannot work is found before anything is started.
    let module = run::read_module(&args.module)?;
    let input = Input::of_path(&args.input)?;
    let talk = Talk { json: context.json };
    if args.nodes == 1 && up::is_running(context.node()) {
        let places = [Place::alone(context.node())];
        return steps(context, &args, &places, module, input).await;
    }
    let default = if args.nodes == 1 { "images/single.toml" } else { "images/cluster.toml" };
    let image = args.image.as_deref().unwrap_or(Path::new(default));
    let (running, places) = nodes::boot(context, image, args.nodes, &talk).await?;
    running.beside(steps(context, &args, &places, module, input), &talk).await
}

/// The image, signed with the demo's own key in a directory that is new or that takes that key's
/// images; elsewhere with whatever signature stands beside it. The demo's signature goes to the
/// directory, for the image may stand where nobody can write.
fn signed(image: &Path, node: &Path) -> Result<Booting, Fault> {
    let place = crate::operator::directory(node);
    let key = place.join("demo-signer.key");
    let trust = image::trust(node)?;
    let is_new = trust.pinned.is_none() && !trust.booted;
    if is_new && !key.exists() {
        up::prepare_directory(node)?;
        crate::operator::make_directory(node)?;
        image::new_key(&key)?;
    }
    let secret = if key.exists() { Some(read_secret_file(&key)?) } else { None };
    let Some(secret) = secret.filter(|s| is_new || trust.pinned == Some(s.key())) else {
        return Ok(Booting::of(image));
    };
    let signed = Signed::at(image, &place.join("demo-image.sig"));
    signed.sign(&secret)?;
    Ok(Booting::signed(signed, Some(secret.key())))
}

/// Makes a directory that only its owner enters.
fn make_closed(directory: &Path) -> Result<(), Fault> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|e| io_fault(directory, &e))
}

/// Prints the transcript, unless a program reads along.
struct Talk {
    json: bool,
}

impl Talk {
    fn head(&self, number: u32, what: &str) {
        if !self.json {
            say(&format!("\n── {number}. {what}"));
        }
    }

    fn line(&self, text: &str) {
        if !self.json {
            for line in text.lines() {
                say(&format!("   {line}"));
            }
        }
    }

    /// Says which of several nodes is spoken of.
    fn at(&self, place: &Place) {
        if !place.name.is_empty() {
            self.line(&format!("{}:", place.name));
        }
    }

    /// A check that held.
    fn held(&self, text: &str) {
        self.line(&format!("✓ {text}"));
    }

    fn event(&self, event: &Value) {
        if !self.json {
            up::tell(event, false);
        }
    }
}

/// Steps 2 to 7: red's text is at the first place, the second computes, and the third keeps the result; of
/// fewer, some do more.
async fn steps(
    context: &Context,
    args: &DemoArgs,
    places: &[Place],
    module: Vec<u8>,
    input: Input,
) -> Result<Report, Stop> {
    let talk = Talk { json: context.json };
    let place = |index: usize| &places[index % places.len()];
    let keeper = place(0);
    talk.head(2, if places.len() == 1 { "attest the node" } else { "attest each node" });
    let mut evidence = Vec::new();
    for place in places {
        talk.at(place);
        let operator = operator(&place.directory)?;
        evidence.push(interruptible(attested(&operator, &talk)).await?);
    }
    talk.head(3, "make the tenants red and blue");
    for place in places {
        talk.at(place);
        let operator = operator(&place.directory)?;
        interruptible(tenants(&place.directory, &operator, &talk)).await?;
    }
    let red = nodes::tenant_at(keeper, "red")?;
    talk.head(4, &format!("red stores {}{}", args.input.display(), keeper.on()));
    let total = input.total();
    let bar = super::progress(context, total, "storing", true);
    let (chain, live) = stored(&red, input, &bar, &talk).await?;
    let heading =
        format!("red counts words in parallel{}, and Unix counts them too", place(1).on());
    talk.head(5, &heading);
    let (runner, results) =
        (nodes::tenant_at(place(1), "red")?, nodes::tenant_at(place(2), "red")?);
    let at = run::At { runner: &runner, input: &red, output: &results };
    let counted = counted(context, &at, args, (module, total), &talk).await?;
    if places.len() > 1 {
        let taken = format!(
            "{} read from {} and wrote to {} itself, by what red gave it there",
            place(1).name,
            keeper.name,
            place(2).name
        );
        talk.held(&taken);
    }
    talk.head(6, "blue is refused; red lends one page, and takes it back");
    let far = match places {
        [_] => None,
        _ => Some(nodes::connect(context, keeper, "blue").await?),
    };
    let mut blue = nodes::tenant_at(keeper, "blue")?;
    if let Some(far) = &far {
        blue = Holder::load(&blue.path, Some(&far.directory))?;
        talk.line(&format!("blue is elsewhere, and reaches {} over QUIC", keeper.name));
    }
    let cap_file = red.file_of(regions::ENTRY, chain);
    let lent = interruptible(lent(&red, &blue, &cap_file, &live, total, &talk)).await?;
    drop((blue, far));
    talk.head(7, if places.len() == 1 { "verify the audit log" } else { "verify each audit log" });
    let (mut logs, mut kinds) = (Vec::new(), BTreeMap::new());
    for place in places {
        talk.at(place);
        let operator = operator(&place.directory)?;
        logs.push(interruptible(audited(&operator, &mut kinds, &talk)).await?);
    }
    let expected = EXPECTED.iter().chain(if places.len() > 1 { &["handoff"][..] } else { &[] });
    for kind in expected {
        if !kinds.contains_key(*kind) {
            return Err(unexpected(format!("no '{kind}' is in the audit log")).into());
        }
    }
    talk.held(
        "the image's signer, tenants, evidence, placements, denials and the revocation are in it",
    );
    let json = json!({
        "evidence": nodes::together(evidence), "bytes": total, "counts": counted, "lent": lent,
        "audit": nodes::together(logs),
    });
    talk.line("");
    talk.held("every step did what it should");
    Ok(Report { json, text: String::new() })
}

/// A failed expectation.
fn unexpected(what: impl Into<String>) -> Fault {
    Fault::Internal(format!("the demo expected otherwise: {}", what.into()))
}

async fn attested(operator: &Holder, talk: &Talk) -> Result<Value, Fault> {
    let verdict = attest::now(operator).await?;
    talk.line(&verdict.text(now_ms()));
    if !verdict.holds(now_ms()) {
        return Err(Fault::StaleAttestation("the node's own evidence is not good".into()));
    }
    talk.held("signature, nonce, PCR selection and digest of the quote were verified");
    Ok(verdict.json())
}

async fn tenants(node: &Path, operator: &Holder, talk: &Talk) -> Result<(), Fault> {
    let out = node.join("tenants");
    make_closed(&out)?;
    let terms =
        Terms { quota_bytes: 8 << 30, quota_tasks: 64, quota_slots: 4096, end_to_end: false };
    for name in ["red", "blue"] {
        if out.join(format!("{name}.cap")).exists() {
            talk.line(&format!("tenant {name} is there from an earlier run"));
        } else {
            talk.line(&tenant::add(operator, name, terms, &out).await?.text());
        }
    }
    Ok(())
}

async fn stored(
    red: &Holder,
    input: Input,
    bar: &ProgressBar,
    talk: &Talk,
) -> Result<(Chain, region::Client), Stop> {
    let earlier = interruptible(async { Ok(regions::open(red, REGION).await) }).await?;
    match earlier {
        Ok(earlier) => interruptible(regions::drop_region(&earlier)).await?,
        Err(Fault::NotFound(_)) => {}
        Err(fault) => return Err(fault.into()),
    }
    let started = std::time::Instant::now();
    let put = regions::put(red, REGION, input, false, bar).await?;
    talk.line(&put.text());
    let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    talk.held(&format!("durable after {}, each page checked by BLAKE3", text::micros(took)));
    Ok((put.chain_of(REGION)?, put.region))
}

/// Up to so many pages, the text is cut into one task a page.
const SMALL_PAGES: u64 = 32;

async fn counted(
    context: &Context,
    at: &run::At<'_>,
    args: &DemoArgs,
    (module, bytes): (Vec<u8>, u64),
    talk: &Talk,
) -> Result<Value, Stop> {
    let job = Job {
        name: "wordcount".into(),
        module,
        input: REGION.into(),
        map: vec!["map".into()],
        reduce: Some(vec!["reduce".into()]),
        // A small text is cut page by page, so that there is something to run side by side.
        pages_per_task: if bytes <= SMALL_PAGES * PAGE_BYTES { 1 } else { 0 },
        limits: Limits::default(),
        secrets: Vec::new(),
    };
    let bar = super::progress(context, 0, "counting", false);
    let done = run::run(at, &job, &bar).await?;
    talk.line(&done.text());
    let ours = String::from_utf8_lossy(&done.output).trim().to_owned();
    let (shown, theirs) = unix_count(&args.input).await?;
    talk.line(&format!("distos   {ours}"));
    talk.line(&format!("unix     {theirs}      {shown}"));
    if ours != theirs {
        return Err(unexpected(format!("counted '{ours}', and wc counted '{theirs}'")).into());
    }
    talk.held("lines, words and bytes are the same");
    Ok(json!({ "distos": ours, "unix": theirs, "job": done.json }))
}

/// The same count by ordinary tools, and the command line that does it.
async fn unix_count(input: &Path) -> Result<(String, String), Fault> {
    let (script, shown) = if input.is_dir() {
        let script =
            "find -H \"$0\" -type f -print0 | LC_ALL=C sort -z | xargs -0 -r cat -- | LC_ALL=C wc";
        (script, script.replace("\"$0\"", &input.display().to_string()))
    } else {
        ("LC_ALL=C wc < \"$0\"", format!("LC_ALL=C wc < {}", input.display()))
    };
    let path = std::path::absolute(input).map_err(|e| io_fault(input, &e))?;
    let work = move || Command::new("/bin/sh").arg("-c").arg(script).arg(path).output();
    let output = tokio::task::spawn_blocking(work).await.map_err(Fault::internal)?;
    let output = output.map_err(|e| Fault::internal(format!("/bin/sh: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Fault::internal(format!("{shown}: {said}")));
    }
    let counts = String::from_utf8_lossy(&output.stdout);
    Ok((shown, counts.split_whitespace().collect::<Vec<_>>().join(" ")))
}

async fn lent(
    red: &Holder,
    blue: &Holder,
    file: &CapFile,
    reds: &region::Client,
    total: u64,
    talk: &Talk,
) -> Result<Value, Fault> {
    let chain = &cap::only(file)?.chain;
    refused(talk, "blue opens the region by its name", regions::open(blue, REGION), &["not-found"])
        .await?;
    let stolen = async {
        let region = regions::restore(blue, chain).await?;
        page(&region, 0, 1).await
    };
    refused(talk, "blue uses a copy of red's capability file", stolen, &["unauthenticated"])
        .await?;

    let weaker = Weaker::page_for(0, LENT_MS);
    let lent = cap::delegate(file, None, &red.secret, blue.secret.key(), &weaker)?;
    let path = red.path.with_file_name("page-for-blue.cap");
    files::write(&path, lent.to_text().as_bytes(), files::SECRET)?;
    talk.line(&format!("red → blue, offline: {}", path.display()));
    let lent = read_cap_file(&path)?;
    let lent = &cap::only(&lent)?.chain;
    let blues = regions::restore(blue, lent).await?;
    let described = cap::describe(&blues.clone().cast_to::<capability::Client>()).await?;
    talk.line(&described.text(now_ms()));

    let len = u32::try_from(total.min(PAGE_BYTES)).map_err(Fault::internal)?;
    if page(&blues, 0, len).await? != page(reds, 0, len).await? {
        return Err(unexpected("blue read other bytes than red stored"));
    }
    talk.held(&format!("blue reads page 0: the same {len} bytes as red stored"));
    refused(talk, "blue reads page 1", page(&blues, PAGE_BYTES, 1), &["denied"]).await?;
    let write = async {
        let mut request = blues.write_request();
        request.get().set_data(b"x");
        call(request).await
    };
    refused(talk, "blue writes to page 0", write, &["denied"]).await?;
    taken_back(red, lent, &blues, len, talk).await
}

/// Red revokes while Blue reads without pause.
async fn taken_back(
    red: &Holder,
    lent: &Chain,
    blues: &region::Client,
    len: u32,
    talk: &Talk,
) -> Result<Value, Fault> {
    let reader = blues.clone();
    // Ends by itself: the page is lent for a minute only.
    let reading = tokio::task::spawn_local(async move {
        let mut done = 0u64;
        loop {
            match page(&reader, 0, len).await {
                Ok(_) => done += 1,
                Err(fault) => return (done, fault),
            }
        }
    });
    let revoked = cap::revoke(red, lent).await?;
    // Any read that starts from here on must be refused.
    refused(talk, "blue reads page 0 after the revocation", page(blues, 0, len), &["revoked"])
        .await?;
    let (done, fault) = reading.await.map_err(Fault::internal)?;
    if fault != Fault::Revoked {
        return Err(unexpected(format!("blue's reading ended with '{fault}', not with 'revoked'")));
    }
    talk.held(&format!(
        "{}; {done} reads had ended before, the one that followed was refused",
        revoked.here()
    ));
    Ok(json!({ "revoke_micros": revoked.micros, "reads_before": done }))
}

async fn page(region: &region::Client, offset: u64, len: u32) -> Result<Vec<u8>, Fault> {
    let mut request = region.read_request();
    request.get().set_offset(offset);
    request.get().set_len(len);
    let answer = call(request).await?;
    super::holder::read(|| Ok(answer.get()?.get_data()?.to_vec()))
}

/// Tries what must not work, and shows how it is refused.
async fn refused<T>(
    talk: &Talk,
    what: &str,
    attempt: impl Future<Output = Result<T, Fault>>,
    with: &[&str],
) -> Result<(), Fault> {
    match attempt.await {
        Ok(_) => Err(unexpected(format!("{what}, and is not refused"))),
        Err(fault) if with.contains(&fault.name()) => {
            talk.held(&format!("{what}: {fault}"));
            Ok(())
        }
        Err(fault) => Err(unexpected(format!("{what}: {fault}"))),
    }
}

async fn audited(
    operator: &Holder,
    kinds: &mut BTreeMap<String, u64>,
    talk: &Talk,
) -> Result<Value, Fault> {
    let verified = audit::verify(operator).await?;
    talk.line(&verified.text());
    let mut own: BTreeMap<String, u64> = BTreeMap::new();
    for entry in audit::entries(operator, 0).await? {
        *own.entry(entry["kind"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let counts: Vec<String> = own.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    talk.line(&format!("entries: {}", counts.join(", ")));
    let log = json!({ "checkpoint": verified.0["checkpoint"], "kinds": own });
    for (kind, count) in own {
        *kinds.entry(kind).or_default() += count;
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unix_counts_exactly_the_bytes_that_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a b"), "one two\n").unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        std::fs::write(dir.path().join("c/d"), "three").unwrap();
        std::os::unix::fs::symlink("a b", dir.path().join("link")).unwrap();
        let (shown, counts) = unix_count(dir.path()).await.unwrap();
        assert_eq!(counts, "1 3 13");
        assert!(shown.contains("find"));
        assert_eq!(Input::of_path(dir.path()).unwrap().total(), 13);
        assert_eq!(unix_count(&dir.path().join("c/d")).await.unwrap().1, "0 1 5");
    }
}
