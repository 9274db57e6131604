//! GPUs as this machine would show them if it had any: a stand-in for NVIDIA's library goes
//! through the same spawner, sandbox and image grants as the vendor's own (G1).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use distos_client::{Connection, fault_of};
use distos_e2e::{Node, eventually, kill, repository, single_image};
use distos_schemas::gpu_capnp::{gpus, lease};
use distos_types::{CapFile, HolderSecret};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A node whose GPU service finds a library in its own directory, the one place that is both the
/// image's to grant and this test's to fill.
struct Machine {
    node: Node,
}

impl Machine {
    fn boot(says: &str) -> Machine {
        // The directory is made by a first boot, on a machine without a GPU.
        let mut node = Node::boot();
        assert!(list(&node)["driver"].as_str().is_some_and(|d| d.starts_with("no GPU")));
        node.down();
        let machine = Machine { node };
        machine.says(says);
        let library = machine.place("libnvidia-ml.so.1");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(format!("-DSTATE=\"{}\"", machine.place("state").display()))
            .arg(repository().join("services/gpu/tests/fake-nvml/nvml.c"))
            .status();
        assert!(built.expect("a C compiler: run `make setup` first").success());
        let own = "profile = \"gpu\"";
        let image = single_image();
        assert_eq!(image.matches(own).count(), 1);
        let library = library.display();
        let settings = format!("{own}\nparams = {{ nvml = \"{library}\" }}");
        machine.node.write_image(&image.replace(own, &settings));
        let mut machine = machine;
        machine.node.reboot();
        machine
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
