// Streams a WAV file (16-bit PCM, mono, at the bundle's rate) through a streaming ONNX bundle with ONNX Runtime's
// C++ API, and writes the features as raw float32. Everything that it does is read from the bundle's manifest.json.
//
//   stream BUNDLE INPUT.wav OUTPUT.f32 [samples per push]
//
// A step takes `receptive_field_samples + hop_samples * (C - 1)` samples and a mask of C frames that says which of
// them exist. Consecutive steps share all samples but hop * C. The first R outputs (the look-ahead) belong to no frame.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>

using nlohmann::json;

struct ElementType {
  ONNXTensorElementDataType type;
  size_t bytes;
};

ElementType element_type(const std::string& name) {
  static const std::map<std::string, ElementType> known = {
      {"float32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4}}, {"float16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}},
      {"int8", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1}},     {"uint8", {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1}},
      {"int32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4}},   {"int64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}},
      {"bool", {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1}}};
  const auto entry = known.find(name);
  if (entry == known.end()) throw std::runtime_error("the manifest names the unknown type " + name);
  return entry->second;
}

// A state of the stream: zero at the beginning, updated by every step.
struct State {
  std::string input, output;
  ElementType type;
  std::vector<int64_t> shape;
  bool replace;  // the output is the next state; otherwise it holds new rows
  bool ordered;  // rows stand oldest first; otherwise they form a ring
  size_t axis;
  std::vector<uint8_t> data;

  explicit State(const json& entry)
      : input(entry.at("input")), output(entry.at("output")), type(element_type(entry.at("dtype"))),
        replace(entry.at("update") == "replace"), ordered(entry.at("ordered")), axis(entry.at("axis")) {
    size_t bytes = type.bytes;
    for (const auto& size : entry.at("shape")) {
      shape.push_back(size.is_number() ? size.get<int64_t>() : 1);  // the number of streams is open: one here
      bytes *= shape.back();
    }
    data.assign(bytes, 0);
  }

  // `rows` new rows on `axis`, at the end of an ordered state or at `slot` of a ring.
  void update(const uint8_t* values, size_t bytes, size_t slot) {
    if (replace) {
      if (bytes != data.size()) throw std::runtime_error("the engine gave " + output + " in another size");
      std::memcpy(data.data(), values, bytes);
      return;
    }
    size_t outer = 1, inner = type.bytes;
    for (size_t i = 0; i < axis; ++i) outer *= shape[i];
    for (size_t i = axis + 1; i < shape.size(); ++i) inner *= shape[i];
    const size_t length = shape[axis], rows = bytes / (outer * inner);
    for (size_t block = 0; block < outer; ++block) {
      uint8_t* held = data.data() + block * length * inner;
      const uint8_t* added = values + block * rows * inner;
      if (ordered) {
        std::memmove(held, held + rows * inner, (length - rows) * inner);
        std::memcpy(held + (length - rows) * inner, added, rows * inner);
      } else {
        for (size_t row = 0; row < rows; ++row)
          std::memcpy(held + ((slot + row) % length) * inner, added + row * inner, inner);
      }
    }
  }
};

class Stream {
 public:
  Stream(const std::string& bundle, const json& manifest)
      : hop_(manifest.at("hop_samples")), receptive_field_(manifest.at("receptive_field_samples")),
        chunk_(manifest.at("geometry").at("chunk_frames")), lookahead_(manifest.at("geometry").at("lookahead_frames")),
        layers_(manifest.at("layers").size()), width_(manifest.at("feature_width")),
        samples_name_(manifest.at("inputs").at(0).at("name")), mask_name_(manifest.at("inputs").at(1).at("name")),
        features_name_(manifest.at("outputs").at(0).at("name")) {
    for (const auto& entry : manifest.at("states")) states_.emplace_back(entry);
    options_.SetIntraOpNumThreads(1);
    session_ = Ort::Session(environment_, (bundle + "/" + manifest.at("artifact").get<std::string>()).c_str(), options_);
  }

  void push(const float* samples, size_t count, std::vector<float>& features) {
    waiting_.insert(waiting_.end(), samples, samples + count);
    total_ += count;
    while (waiting_.size() >= step_samples()) step(features);
  }

  // The frames that waited for their look-ahead. Frames that do not exist are masked: silence would not do.
  void finish(std::vector<float>& features) {
    while (produced_ < frames() + lookahead_) step(features);
    features.resize(frames() * layers_ * width_);
  }

  size_t frames() const { return total_ < receptive_field_ ? 0 : (total_ - receptive_field_) / hop_ + 1; }

 private:
  size_t step_samples() const { return hop_ * (chunk_ - 1) + receptive_field_; }

  void step(std::vector<float>& features) {
    std::vector<float> samples(step_samples(), 0.0f), mask(chunk_);
    std::copy_n(waiting_.begin(), std::min(waiting_.size(), samples.size()), samples.begin());
    for (size_t i = 0; i < chunk_; ++i) mask[i] = taken_ + i < frames() ? 1.0f : 0.0f;
    waiting_.erase(waiting_.begin(), waiting_.begin() + std::min(waiting_.size(), hop_ * chunk_));
    taken_ += chunk_;

    const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t samples_shape[] = {1, static_cast<int64_t>(samples.size())};
    const int64_t mask_shape[] = {1, static_cast<int64_t>(chunk_)};
    std::vector<const char*> input_names = {samples_name_.c_str(), mask_name_.c_str()};
    std::vector<const char*> output_names = {features_name_.c_str()};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<float>(cpu, samples.data(), samples.size(), samples_shape, 2));
    inputs.push_back(Ort::Value::CreateTensor<float>(cpu, mask.data(), mask.size(), mask_shape, 2));
    for (State& state : states_) {
      input_names.push_back(state.input.c_str());
      output_names.push_back(state.output.c_str());
      inputs.push_back(Ort::Value::CreateTensor(cpu, state.data.data(), state.data.size(), state.shape.data(),
                                                state.shape.size(), state.type.type));
    }
    auto outputs = session_.Run(Ort::RunOptions{}, input_names.data(), inputs.data(), inputs.size(),
                                output_names.data(), output_names.size());
    for (size_t i = 0; i < states_.size(); ++i) {
      State& state = states_[i];
      const size_t bytes = outputs[i + 1].GetTensorTypeAndShapeInfo().GetElementCount() * state.type.bytes;
      const size_t slot = state.replace ? 0 : produced_ % state.shape[state.axis];
      state.update(static_cast<const uint8_t*>(outputs[i + 1].GetTensorRawData()), bytes, slot);
    }
    // features [1, layers, C, width] -> one row of layers * width per frame
    const float* values = outputs[0].GetTensorData<float>();
    for (size_t row = 0; row < chunk_; ++row) {
      if (produced_ + row < lookahead_) continue;
      for (size_t layer = 0; layer < layers_; ++layer) {
        const float* start = values + (layer * chunk_ + row) * width_;
        features.insert(features.end(), start, start + width_);
      }
    }
    produced_ += chunk_;
  }

  size_t hop_, receptive_field_, chunk_, lookahead_, layers_, width_;
  std::string samples_name_, mask_name_, features_name_;
  std::vector<State> states_;
  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "stream"};
  Ort::SessionOptions options_;
  Ort::Session session_{nullptr};
  std::vector<float> waiting_;
  size_t total_ = 0, taken_ = 0, produced_ = 0;
};

uint32_t little_endian(const std::vector<char>& bytes, size_t at, size_t count) {
  if (at + count > bytes.size()) throw std::runtime_error("the WAV file is truncated");
  uint32_t value = 0;
  for (size_t i = 0; i < count; ++i) value |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  return value;
}

std::vector<float> read_wav(const std::string& path, uint32_t sample_rate_hz) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "RIFF", 4) || std::memcmp(bytes.data() + 8, "WAVE", 4))
    throw std::runtime_error(path + " is not a WAV file");
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const uint32_t size = little_endian(bytes, at + 4, 4);
    if (!std::memcmp(bytes.data() + at, "fmt ", 4)) {
      const uint32_t rate = little_endian(bytes, at + 12, 4);
      if (little_endian(bytes, at + 8, 2) != 1 || little_endian(bytes, at + 10, 2) != 1 ||
          little_endian(bytes, at + 22, 2) != 16 || rate != sample_rate_hz)
        throw std::runtime_error(path + ": 16-bit PCM, mono, " + std::to_string(sample_rate_hz) + " Hz is needed");
    } else if (!std::memcmp(bytes.data() + at, "data", 4)) {
      std::vector<float> samples(std::min<size_t>(size, bytes.size() - at - 8) / 2);
      for (size_t i = 0; i < samples.size(); ++i)
        samples[i] = static_cast<int16_t>(little_endian(bytes, at + 8 + 2 * i, 2)) / 32768.0f;
      return samples;
    }
    at += 8 + size + size % 2;
  }
  throw std::runtime_error(path + " has no samples");
}

int main(int argc, char** argv) try {
  if (argc < 4) {
    std::cerr << "usage: stream BUNDLE INPUT.wav OUTPUT.f32 [samples per push]\n";
    return 2;
  }
  std::ifstream file(std::string(argv[1]) + "/manifest.json");
  if (!file) throw std::runtime_error(std::string(argv[1]) + " is not a bundle: it has no manifest.json");
  const json manifest = json::parse(file);
  if (manifest.at("kind") != "streaming" || manifest.at("target") != "onnx")
    throw std::runtime_error("a streaming bundle of the target onnx is needed");

  const std::vector<float> samples = read_wav(argv[2], manifest.at("sample_rate_hz"));
  const size_t push = argc > 4 ? std::stoul(argv[4]) : 1600;
  if (push == 0) throw std::runtime_error("0 samples per push: 1 or more are needed");
  Stream stream(argv[1], manifest);
  std::vector<float> features;
  for (size_t at = 0; at < samples.size(); at += push)
    stream.push(samples.data() + at, std::min(push, samples.size() - at), features);
  stream.finish(features);

  std::ofstream output(argv[3], std::ios::binary);
  output.write(reinterpret_cast<const char*>(features.data()), features.size() * sizeof(float));
  if (!output.flush()) throw std::runtime_error(std::string(argv[3]) + " could not be written");
  std::cout << stream.frames() << " frames of " << features.size() / std::max<size_t>(stream.frames(), 1) << " values\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 2;
}
