"""ONNX: conversion, half precision, Q/DQ and small weights."""
