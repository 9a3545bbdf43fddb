// csrc/torch/forward/session.cpp: a program with a state of its own.
#include "session.h"

#include <torchgil/gil.h>

#include <c10/util/Exception.h>

#include <string>

namespace torchgil::forward {
namespace {

namespace py = pybind11;

/// GIL: held. Read from the dictionary itself: `threading.enumerate()` waits
/// for a lock, which the thread that a signal interrupted may have.
std::string thread_name(ThreadId id) {
  const auto threading = py::module_::import("threading");
  const py::object active = py::getattr(threading, "_active", py::dict());
  const py::object thread = active.attr("get")(id);
  return thread.is_none()
      ? "with the number " + std::to_string(id)
      : py::repr(thread.attr("name")).cast<std::string>(); // any characters
}

} // namespace

/// The session's turn, while one lives.
class Session::InTurn {
 public:
  /// Throws where the session's condition is worse than `worst`.
  explicit InTurn(Session& session, Condition worst = Condition::kReady)
      : turn_(session.turn_) {
    if (const auto owner = turn_.take()) {
      const auto mine = this_thread();
      TORCH_CHECK(
          owner != mine,
          "nogil: thread ",
          thread_name(mine),
          " uses a session within its own call of it; a session takes one call "
          "at a time");
      TORCH_CHECK(
          false,
          "nogil: thread ",
          thread_name(mine),
          " uses a session while thread ",
          thread_name(owner),
          " is in a call of it; a session takes one call at a time: give each "
          "user one of their own, by fast.session() or session.copy()");
    }
    const auto condition = session.condition_;
    if (condition > worst) {
      turn_.give_back();
      TORCH_CHECK(
          condition != Condition::kClosed,
          "nogil: this session is closed; take another one: fast.session()");
      TORCH_CHECK(
          false,
          "nogil: another thread was in a call of this session when the "
          "process was forked, so here its state is half written; "
          "session.reset() makes it a new one");
    }
  }
  ~InTurn() {
    turn_.give_back();
  }
  InTurn(const InTurn&) = delete;
  InTurn& operator=(const InTurn&) = delete;

 private:
  Turn& turn_;
};

Session::Session(const Graph& graph, Session* source) : graph_(graph) {
  std::optional<InTurn> of_source;
  if (source != nullptr) {
    TORCH_CHECK_VALUE(&source->graph_ == &graph, "a session of another graph");
    of_source.emplace(*source);
  }
  const ReleaseWindow window;
  state_.emplace(
      graph.layout,
      source ? source->state_->blocks() : graph.layout.first_blocks());
}

py::list Session::run(const py::sequence& flat) {
  const auto inputs = graph_.check(flat);
  const InTurn turn(*this);
  return graph_.run(inputs, state_->values());
}

void Session::reset() {
  const InTurn turn(*this, Condition::kCutOff);
  const ReleaseWindow window;
  state_->assign(graph_.layout.first_blocks());
  condition_ = Condition::kReady;
}

void Session::close() {
  const InTurn turn(*this, Condition::kClosed);
  state_.reset();
  condition_ = Condition::kClosed;
}

std::vector<at::Tensor> Session::tensors() {
  const InTurn turn(*this);
  std::vector<at::Tensor> aliases;
  for (const auto& value : state_->values()) {
    aliases.push_back(value.toTensor().detach());
  }
  return aliases;
}

void Session::write(
    const std::vector<std::pair<uint32_t, at::Tensor>>& values) {
  const InTurn turn(*this);
  const ReleaseWindow window;
  state_->write(values);
}

std::vector<at::Tensor> Session::save() {
  const InTurn turn(*this);
  const ReleaseWindow window;
  std::vector<at::Tensor> copies;
  for (const auto& block : state_->blocks()) {
    copies.push_back(block.clone());
  }
  return copies;
}

void Session::load(const std::vector<at::Tensor>& blocks) {
  const InTurn turn(*this);
  const ReleaseWindow window;
  state_->assign(blocks);
}

void Session::after_fork() {
  if (turn_.lost_its_owner() && condition_ == Condition::kReady) {
    condition_ = Condition::kCutOff;
  }
}

} // namespace torchgil::forward
