//! Runs python/tests/test_package.py against the module that was built with this test.

use std::path::Path;
use std::process::Command;

#[test]
fn the_python_package() {
    let recent = ["-c", "import sys; sys.exit(sys.version_info < (3, 9))"];
    if !Command::new("python3").args(recent).status().is_ok_and(|status| status.success()) {
        println!("there is no python3 of version 3.9 or newer: the package's tests did not run");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Cargo puts the module beside this test, in target/PROFILE/deps.
    let built = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let native = ["lib_native.so", "lib_native.dylib", "_native.dll"].map(|name| built.join(name));
    let native = native.iter().find(|file| file.exists()).expect("the module was built with the test");
    let tests = ["-B", "-m", "unittest", "discover", "--start-directory", "python/tests", "--pattern"];
    let ran = Command::new("python3")
        .args(tests)
        .arg("test_package.py")
        .env("LORA_DROP_NATIVE", native)
        .current_dir(root)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    println!("{said}");
    assert!(ran.status.success() && !said.contains("Ran 0 tests"), "python/tests/test_package.py failed");
}
