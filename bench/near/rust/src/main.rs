//! moka and quick_cache under the workload of ../workload.h: the same flags, sequences, rules and
//! names of results as the C++ program; one JSON object a repetition on stdout.

mod measure;
mod systems;
mod workload;

use measure::Runner;
use workload::Flags;

fn main() {
    let flags = Flags::from_arguments();
    match flags.system.as_str() {
        "moka" => Runner::<systems::Moka>::run(flags),
        "quick_cache" => Runner::<systems::Quick>::run(flags),
        other => panic!("no system {other}"),
    }
}
