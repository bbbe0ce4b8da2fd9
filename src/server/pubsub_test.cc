#include "server/pubsub.h"

#include <gtest/gtest.h>

#include <deque>

namespace larder::server {
namespace {

// Runs what was posted when told to.
class HandLoop final : public Loop {
 public:
  void post(Callback callback) override { posted_.push_back(std::move(callback)); }
  TimerId call_at(TimeUs, Callback) override { return 0; }
  void cancel(TimerId) override {}
  TimeUs now_us() const override { return 0; }
  std::size_t run() {
    std::size_t n = 0;
    for (; !posted_.empty(); ++n) {
      Callback callback = std::move(posted_.front());
      posted_.pop_front();
      callback();
    }
    return n;
  }

 private:
  std::deque<Callback> posted_;
};

struct Receiver final : Peer::Owner {
  void on_pushes() override { peer->take_pushes(received); }
  void on_kill() override { killed = true; }
  void on_finish() override { finished = true; }
  std::shared_ptr<Peer> peer;
  std::string received;
  bool killed = false;
  bool finished = false;
};

struct PubSubTest : testing::Test {
  std::shared_ptr<Peer> join(Receiver& receiver, std::size_t limit = 1'000) {
    receiver.peer = std::make_shared<Peer>(++id, "a", "l", 0, loop, 0, limit, receiver);
    return receiver.peer;
  }
  ~PubSubTest() override { loop.run(); }

  std::uint64_t id = 0;
  HandLoop loop;
  obs::Registry registry;
  obs::Counter& dropped = registry.counter("dropped", {}, "");
  PubSub pubsub{dropped};
};

TEST_F(PubSubTest, PushesAreGatheredIntoOnePost) {
  Receiver r;
  pubsub.subscribe(ChannelKind::channel, "c", join(r));
  EXPECT_EQ(pubsub.publish("c", "1", false), 1);
  EXPECT_EQ(pubsub.publish("c", "2", false), 1);
  EXPECT_EQ(pubsub.publish("d", "3", false), 0);
  EXPECT_EQ(r.received, "");
  EXPECT_EQ(loop.run(), 1U);
  EXPECT_EQ(
      r.received,
      "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\n1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\n2\r\n");
}

TEST_F(PubSubTest, EachSpeaksItsOwnProtocol) {
  Receiver two;
  Receiver three;
  pubsub.subscribe(ChannelKind::channel, "c", join(two));
  pubsub.subscribe(ChannelKind::pattern, "*", join(three));
  three.peer->protocol = 3;
  EXPECT_EQ(pubsub.publish("c", "m", false), 2);
  EXPECT_EQ(pubsub.publish("c", "m", true), 0);
  loop.run();
  EXPECT_TRUE(two.received.starts_with("*3\r\n"));
  EXPECT_EQ(three.received, ">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$1\r\nm\r\n");
}

TEST_F(PubSubTest, OneThatDoesNotTakeItsPushesIsClosedOnce) {
  Receiver slow;
  pubsub.subscribe(ChannelKind::channel, "c", join(slow, 100));
  for (int i = 0; i < 10; ++i) pubsub.publish("c", std::string(20, 'x'), false);
  EXPECT_EQ(dropped.value(), 1U);
  loop.run();
  EXPECT_TRUE(slow.killed);
  EXPECT_EQ(slow.received, "");
}

TEST_F(PubSubTest, WhatWasSentCountsNoMore) {
  Receiver r;
  pubsub.subscribe(ChannelKind::channel, "c", join(r, 100));
  for (int i = 0; i < 10; ++i) {
    pubsub.publish("c", std::string(20, 'x'), false);
    loop.run();
    r.peer->sent(r.received.size());
    r.received.clear();
  }
  EXPECT_FALSE(r.killed);
}

TEST_F(PubSubTest, NothingReachesWhoHasGone) {
  Receiver r;
  pubsub.subscribe(ChannelKind::channel, "c", join(r));
  pubsub.publish("c", "m", false);
  r.peer->detach();
  loop.run();
  EXPECT_EQ(r.received, "");
  pubsub.unsubscribe(ChannelKind::channel, "c", *r.peer);
  EXPECT_EQ(pubsub.publish("c", "m", false), 0);
  EXPECT_EQ(pubsub.count(ChannelKind::channel), 0U);
}

TEST_F(PubSubTest, FinishComesAfterPushes) {
  Receiver r;
  join(r)->push("x");
  r.peer->finish();
  loop.run();
  EXPECT_EQ(r.received, "x");
  EXPECT_TRUE(r.finished);
  EXPECT_FALSE(r.killed);
}

}  // namespace
}  // namespace larder::server
