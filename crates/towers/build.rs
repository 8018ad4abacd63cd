//! Compiles the kernels of the CUDA tower, where it is asked for, for the compute capability that `CUDA_COMPUTE_CAP` names
//! (9.0 as `90`) and those after it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    const KERNELS: &str = "src/cuda/kernels.cu";
    println!("cargo::rerun-if-changed={KERNELS}");
    for name in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "NVCC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let compiler = env::var_os("NVCC").map(PathBuf::from);
    let compiler = compiler.or_else(|| Some(PathBuf::from(env::var_os("CUDA_HOME")?).join("bin/nvcc")));
    let compiler = compiler.unwrap_or_else(|| "nvcc".into());
    // Others that compile kernels would ask the GPU of this machine, if there is one: all are to be for the same.
    let capability = env::var("CUDA_COMPUTE_CAP")
        .expect("CUDA_COMPUTE_CAP has to say for which GPUs, as 90 does for an H100");
    let to = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.ptx");
    let mut command = Command::new(&compiler);
    command.args([
        "-ptx",
        "-O3",
        KERNELS,
        &format!("-arch=compute_{capability}"),
        "-o",
    ]);
    match command.arg(to).status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} cannot compile {KERNELS}: {status}", compiler.display()),
        Err(error) => panic!("{} does not start: {error}", compiler.display()),
    }
}
