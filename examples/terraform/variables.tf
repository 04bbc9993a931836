variable "route" {
  description = "wrapper also supervises and preloads; take handler when the function has another exec wrapper"
  type        = string
  default     = "wrapper"

  validation {
    condition     = contains(["wrapper", "handler"], var.route)
    error_message = "The route is wrapper or handler."
  }
}

variable "subnet_ids" {
  type = list(string)
}

variable "security_group_ids" {
  type = list(string)
}

variable "function_zip" {
  description = "python3 -m zipfile -c function.zip ../function/app.py"
  type        = string
  default     = "function.zip"
}

variable "layer_zip" {
  description = "what `perinvoke layer build` made"
  type        = string
  default     = "../../dist/perinvoke-0.1.0.zip"
}
