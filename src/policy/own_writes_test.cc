#include "policy/own_writes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace larder::policy {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Names = OwnWrites::Names;

TEST(OwnWrites, ExactlyWhatWasNotedIsLeftOutOnce) {
  OwnWrites own;
  own.note(7, {"b", "a"}, {"t"});
  own.note(7, {"c"}, {});
  own.note(8, {"a"}, {});
  Names keys = {"a", "c", "trigger"};
  Names tags = {"t", "u"};
  own.leave_out(7, keys, tags);
  EXPECT_THAT(keys, ElementsAre("trigger"));
  EXPECT_THAT(tags, ElementsAre("u"));
  keys = {"a"};
  own.leave_out(7, keys, tags);
  EXPECT_THAT(keys, ElementsAre("a"));
  own.leave_out(9, keys, tags);
  EXPECT_THAT(keys, ElementsAre("a"));
  own.leave_out(8, keys, tags);
  EXPECT_THAT(keys, IsEmpty());
}

TEST(OwnWrites, TheOldestAreForgotten) {
  OwnWrites own;
  for (TxnId x = 1; x <= OwnWrites::kMost + 10; ++x) own.note(x, {"k"}, {});
  Names none;
  Names keys = {"k"};
  own.leave_out(10, keys, none);
  EXPECT_THAT(keys, ElementsAre("k"));
  own.leave_out(11, keys, none);
  EXPECT_THAT(keys, IsEmpty());
  keys = {"k"};
  own.clear();
  own.leave_out(12, keys, none);
  EXPECT_THAT(keys, ElementsAre("k"));
  own.note(1, Names(OwnWrites::kMost + 1, "k"), {});  // more than all of it
  own.leave_out(1, keys, none);
  EXPECT_THAT(keys, ElementsAre("k"));
}

}  // namespace
}  // namespace larder::policy
