//! Prints the instruction sets that kernels are written for, and whether this machine can run them.

use lora_drop_compute::instruction_sets;

fn main() {
    for (name, is_there) in instruction_sets() {
        println!("{name}: {}", if is_there { "here" } else { "not here: its kernels were not tested" });
    }
}
