// Arrays of the two scans: checked, then handed to the core without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "change_point_scan.hpp"
#include "scan.hpp"
#include "snippet_scan.hpp"

namespace py = pybind11;

namespace {

// the arrays of one call, taken one after another; the Python side has named and explained every shape already
class Arrays {
 public:
  explicit Arrays(const py::list& list) : list_(list) {}

  template <typename T>
  T* next(std::vector<std::int64_t> shape) {
    const auto index = position_++;
    if (index >= list_.size()) throw std::invalid_argument("an array is missing");
    const py::object item = list_[index];
    if (item.is_none()) return nullptr;
    using Array = py::array_t<std::remove_const_t<T>, py::array::c_style>;
    const std::string name = "array " + std::to_string(index);
    if (!Array::check_(item)) throw std::invalid_argument(name + " must be C-contiguous and of its dtype");
    auto array = py::reinterpret_borrow<Array>(item);
    if (static_cast<std::size_t>(array.ndim()) != shape.size()) throw std::invalid_argument(name + ": wrong dimensions");
    for (std::size_t i = 0; i < shape.size(); ++i)
      if (array.shape(static_cast<py::ssize_t>(i)) != shape[i]) throw std::invalid_argument(name + ": wrong shape");
    if constexpr (std::is_const_v<T>)
      return array.data();
    else
      return array.mutable_data();
  }
  std::int64_t size(std::size_t index, std::size_t dimension) const {
    return list_[index].cast<py::array>().shape(static_cast<py::ssize_t>(dimension));
  }
  std::size_t count() const { return list_.size(); }

 private:
  const py::list& list_;
  std::size_t position_ = 0;
};

void check_lengths(const std::int64_t* lengths, const ahlm::ScanSizes& s) {
  for (std::int64_t i = 0; i < s.batch; ++i)
    if (lengths[i] < 1 || lengths[i] > s.snippets) throw std::invalid_argument("lengths must be in [1, T]");
}

struct WithSizes {
  ahlm::ScanSizes sizes;
  ahlm::ChangePointInput input;
};

WithSizes change_point_input(const py::list& list) {
  Arrays arrays(list);
  const std::int64_t b = arrays.size(0, 0), t = arrays.size(0, 1), z = arrays.size(0, 2) / 2, h = arrays.size(10, 0);
  ahlm::ChangePointInput in{};
  for (const float** stream : {&in.start, &in.prior, &in.posterior}) *stream = arrays.next<const float>({b, t, 2 * z});
  in.gru_input = arrays.next<const float>({3 * h, z});
  in.gru_state = arrays.next<const float>({3 * h, h});
  in.gru_input_bias = arrays.next<const float>({3 * h});
  in.gru_state_bias = arrays.next<const float>({3 * h});
  in.prior_state = arrays.next<const float>({2 * z, h});
  in.prior_bias = arrays.next<const float>({2 * z});
  in.posterior_state = arrays.next<const float>({2 * z, h});
  in.initial_state = arrays.next<const float>({h});
  in.noise = arrays.next<const float>({b, t, z});
  in.lengths = arrays.next<const std::int64_t>({b});
  in.forced_changes = arrays.next<const bool>({b, t});
  const ahlm::ScanSizes sizes = ahlm::scan_sizes(b, t, z, h);
  check_lengths(in.lengths, sizes);
  return {sizes, in};
}

ahlm::ChangePointRules change_point_rules(const py::dict& rules, const ahlm::ChangePointInput& in) {
  const auto prior = rules["change_prior"].cast<std::string>();
  const auto range = rules["beta_range"].cast<std::pair<float, float>>();
  const py::object down = rules["alpha_down"];
  const auto alpha = rules["alpha"].cast<float>();
  const ahlm::ChangePointRules r{rules["static_belief"].cast<std::string>() == "held",
                                 prior == "state"  ? ahlm::ChangePrior::state
                                 : prior == "full" ? ahlm::ChangePrior::full
                                                   : ahlm::ChangePrior::constant,
                                 rules["evidence"].cast<std::string>() == "transition",
                                 rules["belief_weight"].cast<float>(),
                                 rules["evidence_weight"].cast<float>(),
                                 rules["refractory"].cast<std::int64_t>(),
                                 rules["reset"].cast<bool>(),
                                 alpha,
                                 down.is_none() ? alpha : down.cast<float>(),
                                 rules["beta0"].cast<float>(),
                                 range.first,
                                 range.second};
  const bool full = r.change_prior == ahlm::ChangePrior::full, constant = r.change_prior == ahlm::ChangePrior::constant;
  if ((in.prior != nullptr) != (full || !r.held) || (in.posterior != nullptr) != r.transition ||
      (in.prior_state != nullptr) != (!r.held || !constant) || (in.prior_bias != nullptr) == full ||
      (in.posterior_state != nullptr) != r.transition)
    throw std::invalid_argument("streams and weights must be those that the rules need");
  return r;
}

ahlm::ChangePointOutput change_point_output(const py::list& list, const ahlm::ScanSizes& s) {
  Arrays arrays(list);
  const std::int64_t b = s.batch, t = s.snippets;
  ahlm::ChangePointOutput out{};
  out.change_points = arrays.next<bool>({b, t});
  for (float** kl : {&out.kl_static, &out.kl_change, &out.kl_charged}) *kl = arrays.next<float>({b, t});
  for (float** latent : {&out.latent, &out.belief_mean, &out.belief_log_std})
    *latent = arrays.next<float>({b, t, s.latent});
  out.state = arrays.next<float>({b, t, s.state});
  return out;
}

void change_point_scan(const py::list& inputs, const py::dict& rules, const py::list& outputs, unsigned n_threads) {
  const auto [sizes, in] = change_point_input(inputs);
  const ahlm::ChangePointRules r = change_point_rules(rules, in);
  const ahlm::ChangePointOutput out = change_point_output(outputs, sizes);
  const py::gil_scoped_release release;
  ahlm::change_point_scan(sizes, r, in, n_threads, out);
}

void change_point_scan_backward(const py::list& inputs, const py::dict& rules, const py::list& outputs,
                                const py::list& gradients, const py::list& found, unsigned n_threads) {
  const auto [s, in] = change_point_input(inputs);
  const ahlm::ChangePointRules r = change_point_rules(rules, in);
  const ahlm::ChangePointOutput out = change_point_output(outputs, s);
  Arrays given(gradients), wanted(found);
  const std::int64_t b = s.batch, t = s.snippets, z = s.latent, h = s.state;
  ahlm::ChangePointGradients g{};
  for (const float** kl : {&g.kl_static, &g.kl_change, &g.kl_charged}) *kl = given.next<const float>({b, t});
  for (const float** latent : {&g.latent, &g.belief_mean, &g.belief_log_std})
    *latent = given.next<const float>({b, t, z});
  g.state = given.next<const float>({b, t, h});
  ahlm::ChangePointInputGradients f{};
  for (float** stream : {&f.start, &f.prior, &f.posterior}) *stream = wanted.next<float>({b, t, 2 * z});
  f.gru_input = wanted.next<float>({3 * h, z});
  f.gru_state = wanted.next<float>({3 * h, h});
  f.gru_input_bias = wanted.next<float>({3 * h});
  f.gru_state_bias = wanted.next<float>({3 * h});
  f.prior_state = wanted.next<float>({2 * z, h});
  f.prior_bias = wanted.next<float>({2 * z});
  f.posterior_state = wanted.next<float>({2 * z, h});
  f.initial_state = wanted.next<float>({h});
  if ((in.prior == nullptr) != (f.prior == nullptr) || (in.posterior == nullptr) != (f.posterior == nullptr))
    throw std::invalid_argument("gradients must be wanted of every stream and of no other");
  const py::gil_scoped_release release;
  ahlm::change_point_scan_backward(s, r, in, out, g, n_threads, f);
}

struct SnippetWithSizes {
  ahlm::ScanSizes sizes;
  ahlm::SnippetInput input;
};
SnippetWithSizes snippet_input(const py::list& list) {
  Arrays arrays(list);
  const std::int64_t b = arrays.size(0, 0), t = arrays.size(0, 1), z = arrays.size(0, 2) / 2, h = arrays.size(8, 0);
  ahlm::SnippetInput in{};
  in.prior_stream = arrays.next<const float>({b, t, 2 * z});
  in.posterior_stream = arrays.next<const float>({b, t, 2 * z});
  in.gru_input = arrays.next<const float>({3 * h, z});
  in.gru_state = arrays.next<const float>({3 * h, h});
  in.gru_input_bias = arrays.next<const float>({3 * h});
  in.gru_state_bias = arrays.next<const float>({3 * h});
  in.prior_state = arrays.next<const float>({2 * z, h});
  in.posterior_state = arrays.next<const float>({2 * z, h});
  in.initial_state = arrays.next<const float>({h});
  in.noise = arrays.next<const float>({b, t, z});
  in.change_points = arrays.next<const bool>({b, t});
  in.lengths = arrays.next<const std::int64_t>({b});
  const ahlm::ScanSizes sizes = ahlm::scan_sizes(b, t, z, h);
  check_lengths(in.lengths, sizes);
  return {sizes, in};
}
ahlm::SnippetOutput snippet_output(const py::list& list, const ahlm::ScanSizes& s) {
  Arrays arrays(list);
  ahlm::SnippetOutput out{};
  out.kl = arrays.next<float>({s.batch, s.snippets});
  out.latent = arrays.next<float>({s.batch, s.snippets, s.latent});
  out.state = arrays.next<float>({s.batch, s.snippets, s.state});
  return out;
}

void snippet_scan(const py::list& inputs, const py::list& outputs, unsigned n_threads) {
  const auto [sizes, in] = snippet_input(inputs);
  const ahlm::SnippetOutput out = snippet_output(outputs, sizes);
  const py::gil_scoped_release release;
  ahlm::snippet_scan(sizes, in, n_threads, out);
}

void snippet_scan_backward(const py::list& inputs, const py::list& outputs, const py::list& gradients,
                           const py::list& found, unsigned n_threads) {
  const auto [s, in] = snippet_input(inputs);
  const ahlm::SnippetOutput out = snippet_output(outputs, s);
  Arrays given(gradients), wanted(found);
  const std::int64_t b = s.batch, t = s.snippets, z = s.latent, h = s.state;
  ahlm::SnippetGradients g{};
  g.kl = given.next<const float>({b, t});
  g.latent = given.next<const float>({b, t, z});
  g.state = given.next<const float>({b, t, h});
  ahlm::SnippetInputGradients f{};
  f.prior_stream = wanted.next<float>({b, t, 2 * z});
  f.posterior_stream = wanted.next<float>({b, t, 2 * z});
  f.gru_input = wanted.next<float>({3 * h, z});
  f.gru_state = wanted.next<float>({3 * h, h});
  f.gru_input_bias = wanted.next<float>({3 * h});
  f.gru_state_bias = wanted.next<float>({3 * h});
  f.prior_state = wanted.next<float>({2 * z, h});
  f.posterior_state = wanted.next<float>({2 * z, h});
  f.initial_state = wanted.next<float>({h});
  const py::gil_scoped_release release;
  ahlm::snippet_scan_backward(s, in, out, g, n_threads, f);
}

}  // namespace

void register_scans(py::module_& m) {
  m.def("change_point_scan", &change_point_scan, py::arg("inputs"), py::arg("rules"), py::arg("outputs"),
        py::arg("n_threads"));
  m.def("change_point_scan_backward", &change_point_scan_backward, py::arg("inputs"), py::arg("rules"),
        py::arg("outputs"), py::arg("gradients"), py::arg("found"), py::arg("n_threads"));
  m.def("snippet_scan", &snippet_scan, py::arg("inputs"), py::arg("outputs"), py::arg("n_threads"));
  m.def("snippet_scan_backward", &snippet_scan_backward, py::arg("inputs"), py::arg("outputs"), py::arg("gradients"),
        py::arg("found"), py::arg("n_threads"));
  m.def("set_thread_pool", [](std::uintptr_t address) {
    ahlm::set_thread_pool(reinterpret_cast<ahlm::ThreadPool>(address));
  }, py::arg("address"));
  m.def("scan_instruction_sets", &ahlm::scan_instruction_sets);
  m.def("scan_instruction_set", &ahlm::scan_instruction_set);
  m.def("set_scan_instruction_set", &ahlm::set_scan_instruction_set, py::arg("name"));
}
