#include "engine/redis/steps.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/redis/scripts.h"

namespace larder::engine::redis {

Steps::Steps(Client& client, const StepEditor& edit) : client_(client) {
  const std::string_view all[] = {scripts::lookup(), scripts::fill(),        scripts::change(),
                                  scripts::read(),   scripts::epoch_begin(), scripts::epoch_write(),
                                  scripts::history()};
  texts_.reserve(std::size(all));
  for (const std::string_view text : all) {
    texts_.push_back(edit ? edit(text) : std::string(text));
    scripts_.emplace_back(text.data(), Client::script(texts_.back()));
  }
}

Task<Result<wire::Reply>> Steps::run(Step step, bool repeatable, TimeUs deadline) const {
  const auto script = std::ranges::find(scripts_, step.script.data(),
                                        &std::pair<const char*, Client::Script>::first);
  LARDER_ASSERT(script != scripts_.end());
  auto answer = co_await client_.eval(script->second, std::move(step.keys), std::move(step.args),
                                      repeatable, deadline);
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->is_error())
    co_return fail(ErrorCode::engine_down,
                   fmt::format("the engine refuses a step: {}", answer->error()), "redis");
  co_return answer->parse();
}

}  // namespace larder::engine::redis
