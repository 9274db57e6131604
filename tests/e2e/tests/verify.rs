//! `distos attest verify`: whoever is given evidence learns offline what it proves, and a changed byte, a missing device or
//! another's nonce is never good. Software TPMs speak, and TPM tools of others judge beside it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use distos_e2e::{Output, distos, eventually, run};
use distos_evidence::bank::Bank;
use distos_evidence::eventlog::{EventLog, EventType};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const NONE: i32 = 31;
const CONTRAINDICATED: i32 = 32;
const MALFORMED: i32 = 16;
/// When all the real certificates hold.
const AT: &str = "2026-11-01T00:00:00Z";
const MACHINE_NONCE: &str = "4760e30534a0621357d458b1a7936551b5dc4cd1e69718adf7ed9fb0252a537e";
const SAMPLE_NONCE: &str = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb";

fn verify(kind: &str, files: &[&Path], options: &[&str]) -> Output {
    let mut command = Command::new(distos());
    command.args(["attest", "verify", "--kind", kind, "--at", AT]).args(files).args(options);
    run(command, b"", SOON)
}

fn json(kind: &str, files: &[&Path], options: &[&str]) -> Value {
    let output = verify(kind, files, &[options, &["--json"]].concat());
    serde_json::from_str(&output.text()).unwrap_or_else(|_| panic!("{}", output.stderr))
}

/// Real evidence, which stands beside the repository.
fn real(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("DISTOS_TESTDATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/testdata"),
        PathBuf::from,
    );
    let path = root.join("attestation").join(name);
    if path.exists() || std::env::var_os("DISTOS_TESTDATA").is_some() {
        return Some(path);
    }
    eprintln!("NOT TESTED: there is no {}; DISTOS_TESTDATA names its folder", path.display());
    None
}

fn outcomes<'a>(report: &'a Value, submod: &str) -> Vec<(&'a str, &'a str)> {
    let checks = report["submods"][submod]["checks"].as_array().unwrap();
    checks.iter().map(|c| (c["name"].as_str().unwrap(), c["outcome"].as_str().unwrap())).collect()
}

/// The file with some of it changed, in a folder of its own.
fn changed(of: &Path, change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("changed");
    let mut bytes = fs::read(of).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The list in a file without the device at `index`.
fn without(of: &Path, index: usize) -> (TempDir, PathBuf) {
    changed(of, |bytes| {
        let mut list: Vec<Value> = serde_json::from_slice(bytes).unwrap();
        list.remove(index);
        *bytes = serde_json::to_vec(&list).unwrap();
    })
}

#[test]
fn an_auditor_learns_that_a_machines_gpus_and_switches_are_genuine_and_each_others() {
    let Some(gpus) = real("nvidia/h100x8-evidence.json") else { return };
    let switches = real("nvidia/ls10x4-evidence.json").unwrap();
    let trust = real("nvidia").unwrap();
    let trust = ["--trust", trust.to_str().unwrap()];
    let asked = [&trust[..], &["--nonce", MACHINE_NONCE]].concat();
    let good = verify("nvidia", &[&gpus, &switches], &asked);
    assert_eq!(good.code, 0, "{}{}", good.text(), good.stderr);
    assert!(good.text().contains("verdict: genuine"), "{}", good.text());
    assert!(good.text().contains("topology: 8 GPUs and 4 switches"), "{}", good.text());
    let code = |files: &[&Path], options: &[&str]| verify("nvidia", files, options).code;
    assert_eq!(code(&[&gpus, &switches], &[]), NONE, "nobody is trusted");
    let other = [&trust[..], &["--nonce", SAMPLE_NONCE]].concat();
    assert_eq!(code(&[&gpus, &switches], &other), CONTRAINDICATED);
    for (of, index) in [(&gpus, 3), (&switches, 2)] {
        let (_folder, fewer) = without(of, index);
        let rest = if of == &gpus { &switches } else { &gpus };
        assert_eq!(code(&[&fewer, rest], &asked), CONTRAINDICATED, "{index} is missing");
    }
    assert_eq!(code(&[&gpus, &gpus, &switches], &asked), 0, "the same again is nothing new");
    let alone = verify("nvidia", &[&gpus], &asked);
    assert!(alone.text().contains("no evidence of the 4 switches"), "{}", alone.text());
    let old = verify("nvidia", &[&gpus], &[&trust[..], &["--nonce", "00"]].concat());
    assert_eq!(old.code, MALFORMED, "{}", old.stderr);
    // As many nonces as devices: each has to answer its own, and these all answered one.
    let each = ["--nonce", MACHINE_NONCE].repeat(8);
    assert_eq!(code(&[&gpus], &[&trust[..], &each].concat()), CONTRAINDICATED);
    assert_eq!(code(&[&gpus], &[&trust[..], &each[2..]].concat()), MALFORMED, "for seven of eight");
}

#[test]
fn reference_values_are_compared_and_their_signers_time_counts() {
    let Some(evidence) = real("nvidia/ls10-evidence-with-rim.json") else { return };
    let trust = real("nvidia").unwrap();
    let options = ["--trust", trust.to_str().unwrap(), "--nonce", SAMPLE_NONCE];
    let report = json("nvidia", &[&evidence], &options);
    assert_eq!(report["verdict"], "genuine", "{report}");
    assert_eq!(report["submods"]["switch-0"]["claims"]["golden-values-matched"], 31);
    let late = [&options[..], &["--at", "2029-01-01T00:00:00Z"]].concat();
    let mut command = Command::new(distos());
    command.args(["attest", "verify", "--kind", "nvidia", "--json"]).arg(&evidence).args(late);
    let late: Value = serde_json::from_str(&run(command, b"", SOON).text()).unwrap();
    let golden = ("golden values", "not-checked");
    assert!(outcomes(&late, "switch-0").contains(&golden), "{late}");
    assert!(late["notes"].to_string().contains("is not used"), "{late}");
}

#[test]
fn one_report_with_its_chain_is_enough_and_a_changed_one_is_refused() {
    let Some(report) = real("nvidia/hopper-report.hex") else { return };
    let chain = real("nvidia/hopper-cert-chain.pem").unwrap();
    let trust = real("nvidia").unwrap();
    let trust = ["--trust", trust.to_str().unwrap()];
    assert_eq!(verify("nvidia", &[&report, &chain], &trust).code, 0);
    let bad = real("nvidia/hopper-report-bad-signature.hex").unwrap();
    assert_eq!(verify("nvidia", &[&chain, &bad], &trust).code, CONTRAINDICATED);
    // Its reference values are of other versions, and a policy that demands them has nothing to go by.
    let folder = TempDir::new().unwrap();
    let policy = folder.path().join("gpu.cedar");
    let text = "// distos-policy: gpu\n// version: 3\n\
        @id(\"gpu\") @unchecked(\"revocation, nonce\")\n\
        permit (principal, action == Action::\"affirm\", resource is NvidiaGpu)\n\
        when { resource.passed.containsAll([\"signature\", \"golden values\"]) };\n\
        @id(\"any\") permit (principal, action == Action::\"admit\", resource is Node);\n";
    fs::write(&policy, text).unwrap();
    let by = [&trust[..], &["--policy", policy.to_str().unwrap()]].concat();
    let none = verify("nvidia", &[&report, &chain], &by);
    assert_eq!(none.code, NONE, "{}", none.text());
    fs::write(
        &policy,
        text.replace(", \"golden values\"", "").replace("nonce\")", "nonce, golden values\")"),
    )
    .unwrap();
    let good = verify("nvidia", &[&report, &chain], &by);
    assert_eq!(good.code, 0, "{}", good.text());
    assert!(
        good.text().contains("verdict: affirming (by the policy gpu@3, which nobody has signed")
    );
    // A signature beside it that is not of it.
    fs::write(folder.path().join("gpu.cedar.sig"), "x").unwrap();
    assert!(verify("nvidia", &[&report, &chain], &by).code > 0);
}

#[test]
fn logs_are_replayed_or_refused_for_a_reason_and_prove_nothing_alone() {
    let Some(folder) = real("eventlogs") else { return };
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let malformed = path.to_string_lossy().contains("malformed");
        let output = verify("eventlog", &[&path], &[]);
        let code = if malformed { CONTRAINDICATED } else { NONE };
        assert_eq!(output.code, code, "{}: {}", path.display(), output.text());
    }
    let list = real("ima/ascii_runtime_measurements").unwrap();
    assert_eq!(verify("ima", &[&list], &[]).code, NONE);
    let (_folder, other) = changed(&list, |bytes| {
        let at = bytes.iter().position(|b| *b == b'/').unwrap();
        bytes[at + 1] ^= 1;
    });
    assert_eq!(verify("ima", &[&other], &[]).code, CONTRAINDICATED, "another file's name");
}

#[test]
fn whoever_gives_the_wrong_files_is_told_which() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("nothing");
    fs::write(&path, "nothing").unwrap();
    for (kind, says) in [
        ("tpm", "no file is a quote"),
        ("nvidia", "no file is a certificate chain"),
        ("snp", "no file is a report of 1184 bytes"),
    ] {
        let output = verify(kind, &[&path], &[]);
        assert_eq!(output.code, MALFORMED, "{kind}");
        assert!(output.stderr.contains(says), "{kind}: {}", output.stderr);
    }
    // A nonce that cannot be what was asked with is none that may be passed over.
    fs::write(&path, [0; 1184]).unwrap();
    let output = verify("snp", &[&path], &["--nonce", "0011"]);
    assert_eq!(output.code, MALFORMED, "{}", output.text());
    fs::write(&path, "nothing").unwrap();
    let empty = TempDir::new().unwrap();
    let trust = ["--trust", empty.path().to_str().unwrap()];
    let output = verify("nvidia", &[&path], &trust);
    assert!(output.stderr.contains("holds no root"), "{}", output.stderr);
}

/// Or an auditor believes that a responder was heard whose answer could not be read.
#[test]
fn an_answer_of_a_responder_that_cannot_be_read_is_named_and_not_used() {
    let Some(evidence) = real("nvidia/ls10-evidence-with-rim.json") else { return };
    let trust = TempDir::new().unwrap();
    fs::copy(real("nvidia/device-root.pem").unwrap(), trust.path().join("root.pem")).unwrap();
    fs::write(trust.path().join("refused.ocsp"), [0x30, 3, 10, 1, 6]).unwrap();
    fs::write(trust.path().join("cut.ocsp"), [0x30, 3, 10]).unwrap();
    let report = json("nvidia", &[&evidence], &["--trust", trust.path().to_str().unwrap()]);
    assert!(outcomes(&report, "switch-0").contains(&("revocation", "not-checked")), "{report}");
    let notes = report["notes"].to_string();
    for name in ["refused.ocsp is not used: an OCSP response", "cut.ocsp is not used"] {
        assert!(notes.contains(name), "{notes}");
    }
}

/// An auditor would take silence for a verdict: that it cannot be verified here is neither good nor bad.
#[test]
fn kinds_that_are_not_supported_are_named_and_say_so() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("quote");
    fs::write(&path, [4; 1020]).unwrap();
    for (kind, says) in
        [("tdx", "Intel TDX quotes are not supported"), ("cca", "Arm CCA tokens are not supported")]
    {
        // Nor does what else was given change that.
        for options in [&[][..], &["--json"], &["--nonce", "00", "--nonce", "01"]] {
            let output = verify(kind, &[&path], options);
            assert_eq!(output.code, MALFORMED, "{kind}: {}", output.text());
            assert!(output.stderr.contains(says), "{kind}: {}", output.stderr);
            assert!(output.stdout.is_empty(), "no verdict: {}", output.text());
        }
    }
    assert_eq!(verify("sgx", &[&path], &[]).code, 2, "nobody has heard of it");
}

/// A software TPM for others' tools.
struct Tpm {
    folder: TempDir,
    process: Child,
}

impl Tpm {
    fn start() -> Tpm {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("tpm");
        let control = folder.path().join("tpm.ctrl");
        let state = format!("dir={}", folder.path().display());
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &state])
            .args(["--server", &format!("type=unixio,path={}", socket.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", control.display())])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tpm = Tpm { folder, process };
        eventually("the TPM's socket", SOON, || socket.exists().then_some(()));
        tpm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs one of tpm2-tools beside its files.
    fn tool(&self, words: &str) -> Output {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.path("tpm").display()));
        run(command, b"", SOON)
    }

    fn ok(&self, words: &str) {
        let output = self.tool(words);
        assert_eq!(output.code, 0, "{words}: {}", output.stderr);
    }

    /// Makes a key for quotes: `ak.pem` and `ak.pub`.
    fn key(&self) {
        for words in [
            "tpm2_createek -c ek.ctx -G ecc -u ek.pub",
            "tpm2_flushcontext -t",
            "tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pem -f pem -n ak.name",
            "tpm2_flushcontext -t",
            "tpm2_readpublic -c ak.ctx -o ak.pub",
            "tpm2_flushcontext -t",
        ] {
            self.ok(words);
        }
    }

    /// A quote: `q.msg`, `q.sig` and `q.pcrs`.
    fn quote(&self, pcrs: &str, nonce: &str) {
        self.ok(&format!(
            "tpm2_quote -c ak.ctx -l {pcrs} -q {nonce} -m q.msg -s q.sig -o q.pcrs -g sha256"
        ));
        self.ok("tpm2_flushcontext -t");
    }

    fn judged_by_others(&self, nonce: &str) -> bool {
        let words =
            format!("tpm2_checkquote -u ak.pem -m q.msg -s q.sig -f q.pcrs -g sha256 -q {nonce}");
        self.tool(&words).code == 0
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn quotes_of_a_software_tpm_are_judged_as_others_tools_judge_them() {
    let tpm = Tpm::start();
    tpm.key();
    tpm.ok(
        "tpm2_pcrextend 16:sha256=0000000000000000000000000000000000000000000000000000000000000007",
    );
    let nonce = "9f3c5a00112233445566778899aabbcc";
    tpm.quote("sha256:0,1,7,16", nonce);
    let files = ["q.msg", "q.sig", "ak.pub", "q.pcrs"].map(|name| tpm.path(name));
    let all: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let ours = |nonce: &str| verify("tpm", &all, &["--nonce", nonce]);
    let good = ours(nonce);
    assert_eq!(good.code, 0, "{}{}", good.text(), good.stderr);
    assert!(tpm.judged_by_others(nonce));
    for key in ["ak.pem", "ak.pub"] {
        let key = tpm.path(key);
        let files = [all[3], all[1], &key, all[0]];
        assert_eq!(verify("tpm", &files, &["--nonce", nonce]).code, 0, "in any order");
    }
    assert_eq!(ours("00").code, CONTRAINDICATED);
    assert!(!tpm.judged_by_others("00"));
    let longer = format!("{nonce}00");
    assert_eq!(ours(&longer).code, CONTRAINDICATED, "a padded nonce");
    assert_eq!(ours(&nonce[2..]).code, CONTRAINDICATED, "a cut one");
    for (name, at) in [("q.msg", 30), ("q.msg", 100), ("q.sig", 20), ("q.pcrs", 150)] {
        let path = tpm.path(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, bad).unwrap();
        assert_eq!(ours(nonce).code, CONTRAINDICATED, "{name} {at}");
        assert!(!tpm.judged_by_others(nonce), "{name} {at}");
        fs::write(&path, good).unwrap();
    }
    // Another TPM's key.
    let other = Tpm::start();
    other.key();
    let key = other.path("ak.pem");
    let files = [all[0], all[1], &key, all[3]];
    assert_eq!(verify("tpm", &files, &["--nonce", nonce]).code, CONTRAINDICATED);
}

/// Why a real log cannot be put into a fresh TPM, if it cannot.
fn unfit(log: &EventLog<'_>) -> Option<&'static str> {
    let starts_elsewhere = log.events().iter().any(|event| {
        event.kind == EventType::NO_ACTION && event.data.starts_with(b"StartupLocality\0")
    });
    if starts_elsewhere {
        return Some("the machine was started at another locality, which nobody can repeat");
    }
    if !log.banks().contains(&Bank::Sha256) {
        return Some("it has no digests of SHA-256");
    }
    log.events().iter().any(|event| event.extends() && event.pcr > 16).then_some("dynamic launch")
}

#[test]
fn a_real_machines_log_is_proven_by_the_quote_of_a_tpm_that_it_was_extended_into() {
    let Some(folder) = real("eventlogs") else { return };
    let mut proven = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let Ok(log) = EventLog::parse(&bytes) else { continue };
        if let Some(why) = unfit(&log) {
            eprintln!("left out: {}: {why}", path.display());
            continue;
        }
        let tpm = Tpm::start();
        tpm.key();
        let extends: Vec<String> = log
            .events()
            .iter()
            .filter(|event| event.extends())
            .map(|event| {
                let digest = hex::encode(event.digest(Bank::Sha256).unwrap());
                format!("{}:sha256={digest}", event.pcr)
            })
            .collect();
        for some in extends.chunks(40) {
            tpm.ok(&format!("tpm2_pcrextend {}", some.join(" ")));
        }
        tpm.quote("sha256:0,1,2,3,4,5,6,7,8,9", "aabb");
        assert!(tpm.judged_by_others("aabb"));
        let files = ["q.msg", "q.sig", "ak.pub", "q.pcrs"].map(|name| tpm.path(name));
        let mut all: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        all.push(&path);
        let report = json("tpm", &all, &["--nonce", "aabb"]);
        assert_eq!(report["verdict"], "genuine", "{}: {report}", path.display());
        assert!(outcomes(&report, "eventlog").contains(&("replay", "passed")), "{report}");
        // A log that was cut, and one in which another thing was measured.
        let (_folder, cut) = changed(&path, |bytes| {
            let log = EventLog::parse(bytes).unwrap();
            let last = log.events().iter().rev().find(|e| e.extends() && e.pcr < 10).unwrap();
            let digest = last.digest(Bank::Sha256).unwrap().to_vec();
            let at = bytes.windows(32).rposition(|part| part == digest).unwrap();
            bytes[at] ^= 1;
        });
        *all.last_mut().unwrap() = &cut;
        assert_eq!(verify("tpm", &all, &["--nonce", "aabb"]).code, CONTRAINDICATED);
        proven += 1;
    }
    assert!(proven >= 2, "{proven}");
}
