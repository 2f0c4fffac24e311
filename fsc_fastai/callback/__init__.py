"fastai callbacks: one idea a file"
