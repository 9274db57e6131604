//! The benchmark, and, started again by it or by a kernel, one of its peers or vats.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    distos_bench::main()
}
