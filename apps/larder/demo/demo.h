// `larder demo`: a cache tier at work in front of a real database, in one terminal.
#pragma once

namespace larder::app {

struct DemoOptions {
  int seconds = 20;
  bool keep = false;  // go on until interrupted, and say how to try it
};

// Exit code: 0, or 1 with a message on standard error.
int run_demo(const DemoOptions& options);

}  // namespace larder::app
