"The paper's tables as resumable runs"
