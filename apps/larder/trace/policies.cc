#include <array>

#include "trace/simulator.h"

namespace larder::trace {
namespace {

constexpr std::array kPolicies = {
    Policy{"larder", "what Larder ships: its policy with the controller", true, true, make_larder},
    Policy{"larder-fixed", "the same with fixed parameters", true, true, make_larder_fixed},
    Policy{"fifo", "first in, first out", true, true, make_fifo},
    Policy{"lru", "least recently used", true, true, make_lru},
    Policy{"clock", "second chance", true, true, make_clock},
    Policy{"sieve", "SIEVE (Zhang et al., NSDI 2024)", true, true, make_sieve},
    Policy{"s3-fifo", "S3-FIFO (Yang et al., SOSP 2023), small 10 %, ghost 90 %, threshold 2", true,
           true, make_s3_fifo},
    Policy{"2q", "2Q, in 25 %, out 50 % (Johnson and Shasha, VLDB 1994)", true, true, make_two_q},
    Policy{"arc", "ARC (Megiddo and Modha, FAST 2003)", true, false, make_arc},
    Policy{"w-tinylfu", "W-TinyLFU with an adaptive window (Einziger et al., Middleware 2018)",
           true, true, make_w_tinylfu},
    Policy{"gdsf", "GreedyDual-Size-Frequency (Cherkasova, 1998)", true, true, make_gdsf},
    Policy{"opt", "Belady's: knows the future", true, false, make_opt},
    Policy{"pfoo-l", "a bound that no policy beats: PFOO-L (Berger et al., SIGMETRICS 2018)", true,
           true, make_pfoo_l},
};

}  // namespace

std::span<const Policy> policies() { return kPolicies; }

const Policy* find_policy(std::string_view name) {
  for (const Policy& policy : kPolicies)
    if (policy.name == name) return &policy;
  return nullptr;
}

}  // namespace larder::trace
