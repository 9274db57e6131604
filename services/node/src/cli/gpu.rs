//! `gpu list`.

use clap::Subcommand;
use distos_abi::Fault;
use distos_schemas::gpu_capnp::{GpuState, gpu, gpus};
use serde_json::{Value, json};

use super::holder::{call, read};
use super::text::{self, row};
use super::{Context, Report};

/// Commands about GPUs.
#[derive(Subcommand)]
pub enum GpuCommand {
    /// The GPUs of this node and what state each is in
    #[command(after_help = "Example:\n  distos gpu list")]
    List,
}

pub(super) async fn command(context: &Context, command: GpuCommand) -> Result<Report, Fault> {
    let GpuCommand::List = command;
    let holder = context.holder()?;
    let client: gpus::Client = holder.root("gpus").await?;
    let answer = call(client.list_request()).await?;
    let json = read(|| {
        let answer = answer.get()?;
        let gpus: capnp::Result<Vec<Value>> = answer.get_gpus()?.iter().map(gpu_json).collect();
        Ok(json!({ "driver": answer.get_driver()?.to_str()?, "gpus": gpus? }))
    })?;
    Ok(Report { text: list_text(&json), json })
}

fn gpu_json(gpu: gpu::Reader<'_>) -> capnp::Result<Value> {
    let state = match gpu.get_state()? {
        GpuState::Clean => "clean",
        GpuState::Leased => "leased",
        GpuState::Cleaning => "cleaning",
        GpuState::Quarantined => "quarantined",
    };
    Ok(json!({
        "index": gpu.get_index(), "name": gpu.get_name()?.to_str()?, "uuid": gpu.get_uuid()?.to_str()?,
        "memory_bytes": gpu.get_memory_bytes(), "state": state, "tenant": gpu.get_tenant(),
        "until_ms": gpu.get_until_ms(),
    }))
}

fn list_text(json: &Value) -> String {
    let driver = json["driver"].as_str().unwrap_or_default().to_owned();
    let gpus = json["gpus"].as_array().map(Vec::as_slice).unwrap_or_default();
    if gpus.is_empty() {
        return driver;
    }
    let mut rows = vec![row(["gpu", "name", "memory", "state", "tenant", "until"])];
    for gpu in gpus {
        let leased = gpu["state"] == "leased";
        let until = gpu["until_ms"].as_u64().filter(|_| leased).map(text::instant);
        rows.push(row([
            &gpu["index"].to_string(),
            gpu["name"].as_str().unwrap_or_default(),
            &text::bytes(gpu["memory_bytes"].as_u64().unwrap_or(0)),
            gpu["state"].as_str().unwrap_or_default(),
            &if leased { gpu["tenant"].to_string() } else { "-".into() },
            &until.unwrap_or_else(|| "-".into()),
        ]));
    }
    format!("{driver}\n{}", text::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_says_so_plainly() {
        let none = json!({ "driver": "no GPU: libnvidia-ml.so.1 is not there", "gpus": [] });
        assert_eq!(list_text(&none), "no GPU: libnvidia-ml.so.1 is not there");
        let one = json!({ "driver": "NVML 550", "gpus": [{ "index": 0, "name": "H100", "memory_bytes": 1, "state": "clean", "tenant": 0, "until_ms": 0 }] });
        assert!(list_text(&one).contains("H100"));
    }
}
