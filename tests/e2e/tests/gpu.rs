//! GPUs as this machine would show them if it had any: a stand-in for NVIDIA's library goes
//! through the same spawner, sandbox and image grants as the vendor's own (G1). What such GPUs sign is synthetic, and by
//! a test's own authority; that it is asked for, handed on and verified is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distos_client::{Connection, fault_of};
use distos_e2e::gpu_maker::{GpuMaker, Gpus, build_library, library};
use distos_e2e::{Node, eventually, kill, single_image};
use distos_evidence::findings::{Findings, Outcome};
use distos_evidence::nvidia::{self, Architecture, Device};
use distos_evidence::pki::{Anchors, Certificate};
use distos_schemas::gpu_capnp::{gpu_evidence, gpus, lease};
use distos_types::{CapFile, HolderSecret};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Exit code of `gpu evidence` if a GPU has signed nothing.
const PARTIAL: i32 = 33;

/// A node whose GPU service finds a library in its own directory, the one place that is both the
/// image's to grant and this test's to fill.
struct Machine {
    node: Node,
}

impl Machine {
    fn boot(says: &str) -> Machine {
        let (machine, ()) = Machine::boot_with(|directory| {
            build_library(directory);
            fs::write(directory.join("state"), says).expect("a file");
        });
        machine
    }

    /// With GPUs that attest themselves.
    fn boot_attesting(maker: &GpuMaker, gpus: u32, says: &str) -> (Machine, Gpus) {
        Machine::boot_with(|directory| maker.supply(directory, gpus, says))
    }

    fn boot_with<T>(fill: impl FnOnce(&Path) -> T) -> (Machine, T) {
        // The directory is made by a first boot, on a machine without a GPU.
        let mut node = Node::boot();
        assert!(list(&node)["driver"].as_str().is_some_and(|d| d.starts_with("no GPU")));
        node.down();
        let mut machine = Machine { node };
        let directory = machine.place("");
        let filled = fill(&directory);
        let own = "profile = \"gpu\"";
        let image = single_image();
        assert_eq!(image.matches(own).count(), 1);
        let library = library(&directory);
        let settings = format!("{own}\nparams = {{ nvml = \"{}\" }}", library.display());
        machine.node.write_image(&image.replace(own, &settings));
        machine.node.reboot();
        (machine, filled)
    }

    fn place(&self, name: &str) -> PathBuf {
        let directory = self.node.directory().join("vats/gpu");
        fs::create_dir_all(&directory).expect("the service's directory");
        directory.join(name)
    }

    /// How many GPUs the driver finds, how many processes are on each, and how many bytes in use.
    fn says(&self, what: &str) {
        fs::write(self.place("state"), what).expect("a file");
    }

    fn state(&self, gpu: usize) -> String {
        list(&self.node)["gpus"][gpu]["state"].as_str().unwrap_or("absent").to_owned()
    }

    fn until(&self, gpu: usize, state: &str) {
        eventually(&format!("GPU {gpu} is {state}"), SOON, || {
            (self.state(gpu) == state).then_some(())
        });
    }

    /// Does something with a capability to the GPUs, over the service's socket.
    fn with_gpus<T>(&self, act: impl AsyncFnOnce(gpus::Client) -> T) -> T {
        let read = |name: &str| {
            fs::read_to_string(self.node.directory().join("operator").join(name)).expect("a file")
        };
        let file = CapFile::parse(&read("operator.cap")).expect("the operator's file");
        let secret = HolderSecret::from_file_text(&read("operator.key")).expect("its key");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio::task::LocalSet::new().block_on(&runtime.expect("an event loop"), async {
            let socket = self.node.directory().join("run/gpu.sock");
            let connection = Connection::open(&socket).await.expect("the service answers");
            let chain = &file.find("gpus").expect("the image grants it").chain;
            act(connection.restore(chain, &secret).await.expect("the GPUs")).await
        })
    }
}

fn list(node: &Node) -> Value {
    node.json(&["gpu", "list"])
}

async fn acquire(gpus: &gpus::Client, index: u32, ttl_ms: u32) -> Result<lease::Client, u8> {
    let mut request = gpus.acquire_request();
    request.get().set_index(index);
    request.get().set_ttl_ms(ttl_ms);
    let leased = request.send().promise.await.map_err(|e| fault_of(&e).code())?;
    leased.get().and_then(|l| l.get_lease()).map_err(|e| fault_of(&e).code())
}

#[test]
fn a_gpu_goes_from_one_tenant_to_the_next_only_when_nothing_of_the_first_is_left() {
    let machine = Machine::boot("2 0 0");
    let found = list(&machine.node);
    assert_eq!(found["driver"], "NVIDIA 550.54.15");
    assert_eq!(found["gpus"][1]["uuid"], "GPU-00000000-fake-1");
    let confined = machine.node.vat("gpu").expect("the service runs");
    let mut lines = confined["protections"].as_array().into_iter().flatten();
    let seccomp = lines.find(|p| p["name"] == "seccomp").expect("a line");
    assert_eq!(seccomp["enforced"], true, "it works in its sandbox, not outside of one");
    machine.until(0, "clean");

    machine.with_gpus(async |gpus| {
        let lease = acquire(&gpus, 0, 60_000).await.expect("a clean GPU");
        assert_eq!(machine.state(0), "leased");
        assert_eq!(acquire(&gpus, 0, 60_000).await.err(), Some(17), "it is leased");
        // The tenant leaves a process and its memory behind.
        machine.says("2 1 1073741824");
        lease.release_request().send().promise.await.expect("a release");
        assert_eq!(machine.state(0), "cleaning");
        assert_eq!(acquire(&gpus, 0, 60_000).await.err(), Some(17), "it is not clean");
        machine.says("2 0 0");
        machine.until(0, "clean");
        acquire(&gpus, 0, 2_000).await.expect("it is clean again");
    });
    // Nobody is left who could renew it.
    machine.until(0, "clean");
}

#[test]
fn no_lease_outlives_the_service_and_nothing_is_taken_for_clean_after_it() {
    let machine = Machine::boot("1 0 0");
    machine.until(0, "clean");
    machine.with_gpus(async |gpus| {
        let lease = acquire(&gpus, 0, 60_000).await.expect("a clean GPU");
        // No process, and less than an image's `idle_mib`: but more than this GPU uses when idle.
        machine.says("1 0 104857600");
        kill(machine.node.pid_of("gpu"));
        let mut renew = lease.renew_request();
        renew.get().set_ttl_ms(1_000);
        let fault = renew.send().promise.await.err().map(|e| fault_of(&e).code());
        assert_eq!(fault, Some(17), "its service has ended");
    });
    eventually("the service is back", SOON, || machine.node.try_pid_of("gpu"));
    // What the one who had it left is still there.
    eventually("the GPU is looked at", SOON, || (machine.state(0) != "absent").then_some(()));
    assert_ne!(machine.state(0), "clean");
    machine.with_gpus(async |gpus| {
        assert_eq!(acquire(&gpus, 0, 60_000).await.err(), Some(17), "it is not clean");
    });
    machine.says("1 0 0");
    machine.until(0, "clean");
}

/// What the command line takes, in files for an auditor; and what each GPU was asked with.
fn evidence(machine: &Machine) -> (Value, Vec<String>) {
    let taken = machine.node.json(&["gpu", "evidence", "--out", "evidence.json"]);
    let gpus = taken["gpus"].as_array().expect("a list").iter();
    let nonces = gpus.map(|gpu| gpu["nonce"].as_str().expect("a nonce").to_owned()).collect();
    (taken, nonces)
}

/// What `attest verify` says of the file, and its exit code.
fn audit(machine: &Machine, maker: &GpuMaker, nonces: &[&String]) -> (Value, i32) {
    let roots = maker.roots().display().to_string();
    let mut args = vec!["attest", "verify", "--kind", "nvidia", "evidence.json", "--json"];
    args.extend(["--trust", &roots]);
    args.extend(nonces.iter().flat_map(|nonce| ["--nonce", nonce.as_str()]));
    let output = machine.node.cli(&args);
    let report = serde_json::from_str(&output.text());
    (report.unwrap_or_else(|_| panic!("{}", output.stderr)), output.code)
}

#[test]
fn what_live_gpus_sign_is_verified_offline_for_the_nonces_that_each_was_asked_with() {
    let maker = GpuMaker::found();
    let (machine, gpus) = Machine::boot_attesting(&maker, 2, "2 0 0 on");
    let (taken, nonces) = evidence(&machine);
    assert_eq!(taken["gpus"][1]["arch"], "HOPPER");
    assert_eq!(taken["gpus"][1]["uuid"], "GPU-00000000-fake-1");
    let [first, second] = &nonces[..] else { panic!("two GPUs: {taken}") };
    assert_ne!(first, second);
    let (report, code) = audit(&machine, &maker, &[first, second]);
    assert_eq!((report["verdict"].as_str(), code), (Some("genuine"), 0), "{report}");
    let claims = |report: &Value, gpu: &str| {
        let claims = &report["submods"][gpu]["claims"];
        [claims["confidential-mode"].clone(), claims["developer-tools"].clone()]
    };
    assert_eq!(claims(&report, "gpu-1"), [Value::Bool(true), Value::Bool(false)]);
    // Neither answers what the other was asked with, and there is no one nonce for both.
    assert_eq!(audit(&machine, &maker, &[second, first]).1, 32);
    assert_eq!(audit(&machine, &maker, &[first]).1, 32);
    let three = [
        "attest",
        "verify",
        "--kind",
        "nvidia",
        "evidence.json",
        "--nonce",
        first,
        "--nonce",
        second,
    ];
    machine.node.refused(&[&three[..], &["--nonce", second]].concat(), 16);
    // Another maker's root is none for them.
    assert_eq!(audit(&machine, &GpuMaker::found(), &[first, second]).1, 32);

    // Somebody lets developers' tools look in.
    gpus.says("2 0 0 devtools");
    let (_, nonces) = evidence(&machine);
    let (report, _) = audit(&machine, &maker, &nonces.iter().collect::<Vec<_>>());
    assert_eq!(claims(&report, "gpu-0"), [Value::Bool(true), Value::Bool(true)], "{report}");

    // GPUs that sign nothing say why, and a library that lies about lengths ends nothing but its answer.
    let pid = machine.node.pid_of("gpu");
    for (says, mode) in [("off", "off"), ("silent", "on"), ("oversized", "on")] {
        gpus.says(&format!("2 0 0 {says}"));
        let output = machine.node.cli(&["gpu", "evidence", "--json"]);
        assert_eq!(output.code, PARTIAL, "{says}: {}", output.stderr);
        let taken: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for gpu in 0..2 {
            assert_eq!(taken["gpus"][gpu]["mode"], mode, "{says}");
            assert_ne!(taken["gpus"][gpu]["fault"], "", "{says}");
        }
        assert_eq!(taken["evidence"], Value::Array(Vec::new()));
    }
    assert_eq!(machine.node.pid_of("gpu"), pid);
    machine.node.refused(&["gpu", "evidence", "--out", "none.json"], 15);
    assert!(!machine.node.file("none.json").exists());
}

struct Taken {
    chain: Vec<Certificate>,
    report: Vec<u8>,
    mode: String,
}

async fn take(gpus: &gpus::Client, nonces: &[&[u8]]) -> Result<Vec<Taken>, u8> {
    let mut request = gpus.evidence_request();
    let mut list = request.get().init_nonces(nonces.len() as u32);
    for (at, nonce) in (0..).zip(nonces) {
        list.set(at, nonce);
    }
    let answer = request.send().promise.await.map_err(|e| fault_of(&e).code())?;
    let answer = answer.get().and_then(|answer| answer.get_gpus()).expect("a list");
    let read = |gpu: gpu_evidence::Reader<'_>| {
        assert_eq!(gpu.get_fault()?.to_str()?, "");
        Ok(Taken {
            chain: Certificate::several(gpu.get_chain()?).expect("certificates"),
            report: gpu.get_report()?.to_vec(),
            mode: gpu.get_mode()?.to_str()?.to_owned(),
        })
    };
    Ok(answer.iter().map(read).collect::<capnp::Result<_>>().expect("evidence"))
}

#[test]
fn only_whoever_may_attest_asks_gpus_and_each_only_with_a_nonce_of_its_own() {
    let maker = GpuMaker::found();
    let (machine, _gpus) = Machine::boot_attesting(&maker, 2, "2 0 0 on");
    let root = fs::read(maker.roots().join("synthetic-root.pem")).expect("a root");
    let roots = Certificate::several(&root).expect("a root");
    let at_s = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs();
    let anchors = Anchors { roots: &roots, others: &[], crls: &[], responses: &[], at_s };
    machine.with_gpus(async |gpus| {
        let (one, other) = ([1u8; 32], [2u8; 32]);
        let wrong: [&[&[u8]]; 5] =
            [&[], &[&one], &[&one, &one], &[&one, &other[..31]], &[&one, &other, &[3; 32]]];
        for nonces in wrong {
            assert_eq!(take(&gpus, nonces).await.err(), Some(16), "{nonces:?}");
        }
        let taken = take(&gpus, &[&one, &other]).await.expect("evidence");
        let mut findings = Findings::default();
        let first = Device::of_chain(Architecture::Hopper, &taken[0].chain, anchors, &mut findings);
        let first = first.unwrap_or_else(|| panic!("{findings:?}"));
        let outcome = |report: &[u8], nonce: &[u8; 32]| {
            let mut findings = Findings::default();
            let report = first.verify(report, Some(nonce), &[], &mut findings);
            assert_eq!(report.is_some(), findings.outcome(nvidia::SIGNATURE) == Outcome::Passed);
            findings.outcome(nvidia::NONCE)
        };
        assert_eq!(outcome(&taken[0].report, &one), Outcome::Passed);
        assert_eq!(outcome(&taken[0].report, &other), Outcome::Failed);
        assert_eq!(outcome(&taken[1].report, &other), Outcome::NotChecked, "another GPU signed it");
        assert_eq!(taken[0].mode, "on");
    });
    machine.node.tenants(&["red"]);
    assert_eq!(machine.node.json(&["gpu", "list", "--as", "red.cap"])["gpus"][0]["index"], 0);
    machine.node.refused(&["gpu", "evidence", "--as", "red.cap"], 10);
}
