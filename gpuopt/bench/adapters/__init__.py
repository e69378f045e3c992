"""One small file for each library that is measured; each gives `providers(device)`. Listed in `gpuopt.bench.providers`."""
