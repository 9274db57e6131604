//! Each target for `DISTOS_FUZZ_S` seconds (8): first on every finding and every seed, then on
//! mutations of them.
#![forbid(unsafe_code)]

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const HERE: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                distos_fuzz::check(stringify!($name));
            }
        )*
    };
}

targets!(
    chain,
    capfile,
    keyfile,
    fault,
    manifest,
    image,
    record,
    journal,
    auditlog,
    regionlog,
    evidence,
    joining,
    live,
    eventlog,
    ima,
    device,
    snp,
    certificate,
    ocsp,
    reference,
    policy,
    ear,
    svid,
    renewal,
    statement,
    bundle,
    token,
    noise,
    configuration,
    vote,
    revocation,
    name,
    job,
    order,
    wasm,
    rpc,
);

#[test]
fn no_target_is_forgotten() {
    let all: Vec<&str> = distos_fuzz::TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(HERE, all, "a target that no test runs finds nothing");
}
